// The viewer of episodes. It reads the JSON in the page, loads nothing, and shows every text of it by textContent alone.
"use strict";
(() => {
  const { texts, episodes } = JSON.parse(document.getElementById("viewer-data").textContent);
  const viewer = document.getElementById("viewer");
  const frame = document.getElementById("viewer-frame");
  const MOST = 60; // episodes in the list
  const KINDS = { switch: "under the switch", expert: "expert, with marks", evaluation: "evaluation" };
  let shown = 0;
  let at = 0;
  let found = [];

  function make(tag, parent, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  }

  function button(parent, text, label, act) {
    const element = make("button", parent, "", text);
    element.type = "button";
    if (label) element.setAttribute("aria-label", label);
    element.addEventListener("click", act);
    return element;
  }

  function choice(parent, label, options, act) {
    const box = make("label", parent, "field");
    make("span", box, "", label);
    const select = make("select", box);
    for (const [value, text] of options) {
      const option = make("option", select, "", text);
      option.value = value;
    }
    select.addEventListener("change", act);
    return select;
  }

  const outcome = (ok) => (ok === null ? "outcome unknown" : ok ? "success" : "no success");
  const called = (step) => step.by !== undefined && step.by !== "quick" && step.by !== "expert";
  const signed = (number) => (number < 0 ? "\u2212" : "+") + Math.abs(number);
  const markedBy = (episode, i) => Object.keys(episode.marks || {}).filter((name) => String(i) in episode.marks[name]);
  const counts = (episode, i) => markedBy(episode, i).length > 0 || called(episode.steps[i]);
  const haystacks = episodes.map((e) =>
    [KINDS[e.kind], e.who, e.env, `seed ${e.seed}`, texts[e.goal], outcome(e.ok)].join(" ").toLowerCase());

  // -- the frame, made once

  const find = make("div", frame, "find");
  const box = make("label", find, "field wide-field");
  make("span", box, "", "Find an episode");
  const query = make("input", box);
  query.type = "search";
  query.placeholder = "words of its goal, model, level, seed 7";
  query.addEventListener("input", () => search());
  const whos = [...new Set(episodes.map((e) => e.who))];
  const kinds = [...new Set(episodes.map((e) => e.kind))];
  const kind = choice(find, "Kind", [["", "any"], ...kinds.map((k) => [k, KINDS[k]])], () => search());
  const who = choice(find, "Who acted", [["", "anyone"], ...whos.map((w) => [w, w])], () => search());
  const ended = choice(find, "Ended in", [["", "anything"], ["true", "success"], ["false", "no success"]], () => search());
  const result = make("p", frame, "note");
  result.setAttribute("role", "status");
  const columns = make("div", frame, "columns");
  const list = make("ul", columns, "found");
  list.setAttribute("aria-label", "Episodes found");
  const stage = make("div", columns, "stage");
  const about = make("p", stage, "note about");
  const goal = make("p", stage, "goal");
  const controls = make("div", stage, "controls");
  controls.setAttribute("role", "group");
  controls.setAttribute("aria-label", "Steps");
  const first = button(controls, "First", "First step", () => go(0));
  const back = button(controls, "\u25C0 Back", "", () => go(at - 1));
  const where = make("span", controls, "where");
  const next = button(controls, "Next \u25B6", "", () => go(at + 1));
  const last = button(controls, "Last", "Last step", () => go(Infinity));
  const jump = button(controls, "Next mark or call", "", () => mark());
  const strip = make("div", stage, "strip");
  strip.setAttribute("role", "group");
  strip.setAttribute("aria-label", "All steps");
  const legend = make("p", stage, "note legend");
  const panel = make("div", stage, "panel");
  panel.setAttribute("aria-live", "polite");
  const others = make("p", stage, "note others");

  // -- finding

  function search() {
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = episodes.map((_, i) => i).filter((i) =>
      words.every((word) => haystacks[i].includes(word)) &&
      (!kind.value || episodes[i].kind === kind.value) &&
      (!who.value || episodes[i].who === who.value) &&
      (!ended.value || String(episodes[i].ok) === ended.value));
    const more = found.length > MOST ? `, the first ${MOST} in the list` : "";
    result.textContent = `${found.length} of ${episodes.length} episodes found${more}.`;
    list.replaceChildren();
    for (const i of found.slice(0, MOST)) {
      const e = episodes[i];
      const item = button(make("li", list), "", "", () => open(i));
      item.dataset.episode = i;
      make("span", item, e.ok ? "won" : "lost", e.ok === null ? "? " : e.ok ? "\u2713 " : "\u2717 ");
      make("span", item, "sr", `${outcome(e.ok)}, `);
      make("span", item, "", texts[e.goal] || e.env);
      make("span", item, "small", `${e.who} \u00B7 ${e.env.split("/").pop()} \u00B7 seed ${e.seed}`);
    }
    if (found.length && !found.includes(shown)) open(found[0]);
    else current();
  }

  function current() {
    for (const item of list.querySelectorAll("button")) {
      if (Number(item.dataset.episode) === shown) item.setAttribute("aria-current", "true");
      else item.removeAttribute("aria-current");
    }
  }

  // -- one episode

  function open(number) {
    shown = number;
    const e = episodes[shown];
    const facts = [KINDS[e.kind], e.who, e.env, `seed ${e.seed}`, outcome(e.ok), `${e.n} steps`];
    if (e.kind === "switch") facts.push(e.budget === null ? "no budget" : `budget ${e.budget}`);
    if (e.n > e.steps.length) facts.push(`the first ${e.steps.length} are here`);
    about.textContent = facts.join(" \u00B7 ");
    goal.textContent = texts[e.goal];
    strip.replaceChildren();
    e.steps.forEach((step, i) => {
      const names = markedBy(e, i);
      const said = [`Step ${i + 1}`, ...names.map((n) => `marked by ${n}`), ...(called(step) ? [`by ${step.by}`] : [])];
      const cell = button(strip, String(i + 1), said.join(", "), () => go(i));
      if (names.length) cell.classList.add("marked");
      if (called(step)) cell.classList.add("called");
    });
    legend.replaceChildren();
    if (e.marks) make("span", legend, "key marked", "marked by a selector");
    if (e.steps.some(called)) make("span", legend, "key called", "not by QUICK");
    jump.hidden = !e.steps.some((_, i) => counts(e, i));
    const same = episodes.map((_, i) => i).filter((i) => i !== shown && episodes[i].env === e.env && episodes[i].seed === e.seed);
    others.replaceChildren();
    if (same.length) {
      make("span", others, "", "The same episode by ");
      for (const i of same.slice(0, 20)) button(others, `${episodes[i].who} (${outcome(episodes[i].ok)})`, "", () => open(i));
    }
    current();
    go(0);
  }

  function go(number) {
    const e = episodes[shown];
    at = Math.max(0, Math.min(e.steps.length - 1, number));
    first.disabled = back.disabled = at === 0;
    next.disabled = last.disabled = at === e.steps.length - 1;
    where.textContent = `Step ${at + 1} of ${e.n}`;
    [...strip.children].forEach((cell, i) => {
      if (i === at) cell.setAttribute("aria-current", "step");
      else cell.removeAttribute("aria-current");
    });
    panel.replaceChildren();
    step(e, e.steps[at]);
  }

  function mark() {
    const e = episodes[shown];
    for (let i = 1; i <= e.steps.length; i += 1) {
      const place = (at + i) % e.steps.length;
      if (counts(e, place)) return go(place);
    }
    return undefined;
  }

  function line(term, text, className) {
    const row = make("div", panel, "line");
    make("div", row, "term", term);
    return make("div", row, className || "", text);
  }

  function step(e, s) {
    line("Saw", texts[s.o], "text");
    if (s.t !== undefined) line("Thought", texts[s.t], "text thought");
    line("Did", texts[s.a], "text action");
    if (s.r !== undefined) line("Reward", signed(s.r));
    if (s.by !== undefined) acted(e, s);
    for (const name of Object.keys(e.marks || {})) {
      const mark = e.marks[name][at];
      const cell = line(name, mark ? texts[mark[0]] : "\u2013", mark ? "badge text" : "none");
      if (mark && mark.length > 1) make("div", cell, "why", texts[mark[1]]);
    }
  }

  function acted(e, s) {
    const cell = line("Who acted", s.by === "quick" || s.by === "deepthink" ? s.by.toUpperCase() : s.by, called(s) ? "badge text" : "text");
    if (s.p !== undefined) make("div", cell, "why", `with probability ${s.p}`);
    if (!s.q) return;
    const name = (i) => (i === 0 ? "QUICK" : i === s.q.length - 1 ? "DEEPTHINK" : `model ${i}`);
    const open = s.q.filter((q) => q !== null);
    const best = s.q.indexOf(Math.max(...open));
    const low = Math.min(...open, 0);
    const span = Math.max(...open, 0) - low || 1;
    s.q.forEach((q, i) => {
      const row = make("div", cell, i === best ? "q best" : "q");
      make("span", row, "q-name", name(i));
      const bar = make("span", make("span", row, "q-track"), "q-bar");
      if (q !== null) bar.style.width = `${(100 * (q - low)) / span}%`;
      make("span", row, "q-number", q === null ? "no call left" : q.toFixed(3));
    });
    const took = [...s.q.keys()].find((i) => name(i).toLowerCase() === s.by);
    const why = took === best ? `The switch values a step by ${name(best)} most, so it acts.` : `The switch wanted ${name(best)}, and the budget had no call left.`;
    make("div", cell, "why", why);
  }

  viewer.addEventListener("keydown", (event) => {
    const tag = event.target.tagName;
    if (tag === "INPUT" || tag === "SELECT" || event.ctrlKey || event.altKey || event.metaKey) return;
    const acts = { ArrowLeft: () => go(at - 1), ArrowRight: () => go(at + 1), Home: () => go(0), End: () => go(Infinity), m: mark };
    if (!(event.key in acts)) return;
    event.preventDefault();
    acts[event.key]();
  });

  viewer.hidden = false;
  document.getElementById("static-episodes").hidden = true;
  open(0);
  search();
})();
