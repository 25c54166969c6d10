"""Storage of either kind, and a small run."""

import pytest
from storage_runs import RECIPE, outcome

from atlas_ray import pipeline
from atlas_ray.recipe.loading import load


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "kept.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Weights and episodes of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "kept.toml").write_text(RECIPE)
    pipeline.run(load(folder / "kept.toml"), folder / "run")
    return outcome(folder / "run")


@pytest.fixture(scope="module")
def s3():
    """An S3 server on loopback with the bucket ``there``: a function from a path in it to a URI."""
    import logging

    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    secrets = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in secrets.items():
            patch.setenv(name, value)
        server.start()
        host, port = server.get_host_and_port()

        def uri(path):
            return f"s3://{path}?endpoint_override={host}:{port}&scheme=http&region=us-east-1"

        from pyarrow import fs

        fs.FileSystem.from_uri(f"{uri('there')}&allow_bucket_creation=true")[0].create_dir("there")
        yield uri
        server.stop()


@pytest.fixture(params=["directory", "s3"])
def place(request, tmp_path):
    """Storage of either kind, empty."""
    if request.param == "directory":
        return str(tmp_path / "shared")
    return request.getfixturevalue("s3")(f"there/{tmp_path.name}")
