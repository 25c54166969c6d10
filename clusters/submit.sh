#!/usr/bin/env bash
# Brings a cluster up, runs a recipe on it as a job, and shows its log; the exit code says whether the job succeeded.
#
#   clusters/submit.sh aws|gcp|onprem|kuberay RECIPE [--dotted.field VALUE ...]
#
# From the environment: FILE (clusters/PLATFORM.yaml), BASE (clusters/kuberay/base.yaml), RUNS (/mnt/atlas-ray/runs, on the
# share), PORT (8265, of the tunnel here).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "submit.sh: $1" >&2
  exit 2
}

[ $# -ge 2 ] || fail "say aws, gcp, onprem or kuberay, and a recipe"
platform=$1 recipe=$2
shift 2
runs=${RUNS:-/mnt/atlas-ray/runs} port=${PORT:-8265} base=${BASE:-clusters/kuberay/base.yaml}
name=$(basename "$recipe" .toml)
case $platform in
  aws | gcp | onprem) file=${FILE:-clusters/$platform.yaml} ;;
  kuberay) file=${FILE:-clusters/kuberay/raycluster.yaml} ;;
  *) fail "no such platform: $platform (aws, gcp, onprem, kuberay)" ;;
esac
groups=(--placement.workers environments --placement.engines engines --placement.trainers trainers)

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }

! listening || fail "port $port is taken here; PORT=8266 $0 ... takes another"
python clusters/check.py "$file" "$recipe" "${groups[@]}" "$@"
[ "$platform" != kuberay ] || python clusters/check.py "$base"

export RAY_AUTH_MODE=token
token=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
[ -s "$token" ] || (umask 077 && ray get-auth-token --generate >/dev/null)

if [ "$platform" = kuberay ]; then
  down="kubectl delete -f $file"
  kubectl get secret atlas-ray-token >/dev/null 2>&1 || kubectl create secret generic atlas-ray-token --from-file="auth_token=$token"
  kubectl apply -f "$base"
  kubectl apply -f "$file"
  kubectl wait --for=condition=HeadPodReady raycluster/atlas-ray --timeout=30m
  kubectl port-forward --address 127.0.0.1 service/atlas-ray-head-svc "$port:8265" >/dev/null &
else
  down="ray down --yes $file"
  ray up --yes "$file"
  ray dashboard --port "$port" "$file" >/dev/null &
fi
tunnel=$!
trap 'kill "$tunnel" 2>/dev/null && wait "$tunnel" 2>/dev/null || true' EXIT

for _ in $(seq 120); do
  listening && break
  kill -0 "$tunnel" 2>/dev/null || fail "the tunnel to the head broke; the cluster is up: $down"
  sleep 1
done
listening || fail "no tunnel to the head within two minutes; the cluster is up: $down"

address=http://127.0.0.1:$port
id=${name//[^A-Za-z0-9_.-]/-}-$(date +%Y%m%d-%H%M%S)
echo "job $id; with a tunnel: ray job logs --follow --address $address $id, ray job stop --address $address $id"
code=0
ray job submit --address "$address" --submission-id "$id" --working-dir . -- \
  python -m atlas_ray run "$recipe" --out "$runs/$name" "${groups[@]}" "$@" || code=$?

echo "the run is in $runs/$name of the cluster; the same command again goes on where it stopped"
echo "the cluster is still up and costs money: $down"
exit "$code"
