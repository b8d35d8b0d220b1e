"use strict";
// The token view colours every action token of a trajectory by its advantage, shifted value or residual.

(function () {
  const data = embeddedData("tokens-data");
  if (!data) return;
  const MEANING = {
    advantage: ["advantage", "β · log π/π_ref: blue where the policy has made this token more likely than the reference did, orange where less. In units of reward: how much better the policy considers this token than the reference's average choice."],
    shifted_value: ["shifted value", "β · (v − v_ref): what the policy expects to earn beyond the reference, net of the KL penalty, from before this token to the end."],
    residual: ["residual", "R_t − β Σ log π/π_ref − β (v − v_ref), summed from this token on: the return from here on that the policy's advantages and value do not explain. ShiQ drives it to 0; blue where the policy underestimates the rest, orange where it overestimates it."],
  };
  const NOTHING = "Point at a token or a bar, or tap it, for its numbers; the arrow keys go on from there.";
  const BATCH = 8, STRONGEST = 0.75, SATURATES = 0.98, STRIP = 84, EDGE = 5, WIDEST = 24, CONTEXT = 240;
  const at = (id) => document.getElementById(id);
  const list = at("tokens-list"), more = at("tokens-more");
  let quantity = "advantage", limit = 1, queue = [], drawn = 0, current = null;

  const colour = (value) => {
    const strength = STRONGEST * Math.min(1, Math.abs(value) / limit) ** 0.8;
    return `rgba(var(--${value < 0 ? "down" : "up"}), ${strength.toFixed(3)})`;
  };

  function scale(rows) {
    const sizes = rows.flatMap((row) => row[quantity].filter((v) => v !== null).map(Math.abs)).sort((a, b) => a - b);
    return sizes.length ? sizes[Math.min(sizes.length - 1, Math.floor(SATURATES * sizes.length))] || 1 : 1;
  }

  // Spaces and line ends stay as they are, so that copied text is right; a pale sign makes them visible.
  function appendText(parent, text) {
    for (const piece of text.split(/([ \n\t])/)) {
      if (!piece) continue;
      if (piece.trim()) { add(parent, document.createTextNode(piece)); continue; }
      if (piece === "\n") { add(parent, make("span", "quiet", "↵"), document.createTextNode("\n")); continue; }
      const space = make("span", "ws", piece);
      space.dataset.c = piece === "\t" ? "→" : "·";
      add(parent, space);
    }
  }

  function tokenLine(row) {
    const node = make("div", "tokens");
    node.tabIndex = 0;
    row.tokens.forEach((token, i) => {
      const span = make("span", row.action[i] ? "t" : "state");
      if (row.action[i]) span.dataset.i = i;
      if (row.reward[i]) { span.classList.add("earned"); span.dataset.r = numberText(row.reward[i], true); }
      appendText(span, token === "" ? "∅" : token);
      add(node, span);
    });
    fold(node, row);
    return node;
  }

  // Hide the beginning of a long prompt behind a button.
  function fold(node, row) {
    const first = row.action.indexOf(true);
    let kept = first, characters = 0;
    while (kept > 0 && (characters < CONTEXT || !/^\s/.test(row.tokens[kept]))) characters += row.tokens[--kept].length;
    if (kept < 20) return;
    const early = make("span"), button = make("button", "fold", `⋯ ${kept} tokens before\n`);
    early.append(...[...node.children].slice(0, kept));
    early.hidden = true;
    button.addEventListener("click", () => { early.hidden = false; button.remove(); });
    node.prepend(early, button);
  }

  // The same numbers as bars, one an action, so that their course over the trajectory is seen; a line where reward fell.
  function strip(row, actions) {
    const space = "http://www.w3.org/2000/svg", node = document.createElementNS(space, "svg");
    node.setAttribute("class", "strip");
    node.setAttribute("viewBox", `0 0 ${actions.length} ${STRIP}`);
    node.setAttribute("preserveAspectRatio", "none");
    node.style.maxWidth = `${WIDEST * actions.length}px`;
    const bar = (x, y, width, height, fill, index) => {
      const rect = document.createElementNS(space, "rect");
      for (const [name, value] of Object.entries({ x, y, width, height })) rect.setAttribute(name, value);
      rect.style.fill = fill;
      if (index !== undefined) rect.dataset.i = index;
      node.appendChild(rect);
    };
    const middle = STRIP / 2, full = middle - EDGE;
    for (const y of [EDGE, middle, STRIP - EDGE]) bar(0, y - 0.3, actions.length, 0.6, "var(--line)");
    actions.forEach((i, x) => {
      const value = row[quantity][i], height = value === null ? 0 : Math.min(1, Math.abs(value) / limit) * full;
      if (row.reward[i]) bar(x + 0.42, 0, 0.16, STRIP, "var(--line)");
      bar(x + 0.1, value > 0 ? middle - height : middle, 0.8, height, `rgb(var(--${value < 0 ? "down" : "up"}))`);
      if (Math.abs(value) > limit) bar(x + 0.1, value > 0 ? 0 : STRIP - EDGE, 0.8, EDGE, "var(--ink)");
      bar(x, 0, 1, STRIP, "transparent", i);
    });
    return node;
  }

  // The bars with their axes: the quantity in reward units upwards, the number of the action to the right.
  function chart(row, actions) {
    const beyond = row[quantity].some((value) => value !== null && Math.abs(value) > limit);
    const axis = add(make("div", "axis"), ...[limit, 0, -limit].map((value) => make("span", "", numberText(value, true))));
    const along = add(make("div", "along"), make("span", "", actions.length > 1 ? "action 1" : "1"), actions.length > 1 ? make("span", "", String(actions.length)) : null);
    along.style.maxWidth = `${WIDEST * actions.length}px`;
    const title = `${MEANING[quantity][0]}, reward units${beyond ? "; a dark end: the value goes beyond the axis" : ""}`;
    return [make("p", "", title), add(make("div", "plot"), axis, strip(row, actions), along)];
  }

  function paint(node, row) {
    const actions = row.tokens.map((_, i) => i).filter((i) => row.action[i]);
    for (const span of node.querySelectorAll(".t")) {
      const value = row[quantity][span.dataset.i];
      span.style.background = value === null ? "" : colour(value);
    }
    node.querySelector(".bars").replaceChildren(...chart(row, actions));
  }

  function card(row) {
    const node = make("article", "card");
    const top = make("div", "top");
    add(top, make("b", "", row.kind === "sample" ? "sampled by the policy" : "from the data"));
    if (row.side) add(top, make("span", `side ${row.side}`, row.side));
    if (row.return !== null) add(top, make("span", "", `return ${numberText(row.return)}`));
    if (row.beta !== null) add(top, make("span", "", `β = ${row.beta}`));
    const sum = row.advantage.reduce((total, v) => total + (v ?? 0), 0);
    const start = row.action.indexOf(true), value = row.shifted_value[start] ?? 0, left = row.residual[start] ?? null;
    let parts = `${numberText(value)} expected at the start, ${numberText(sum)} from advantages`;
    if (left !== null) parts += `, ${numberText(left)} left over`;
    const offset = row.return === null || left === null ? 0 : row.return - value - sum - left;
    if (Math.abs(offset) > 0.001 * (Math.abs(row.return) + Math.abs(sum) + Math.abs(left))) parts += `, ${numberText(offset)} offset`;
    add(top, make("span", "", parts));
    add(top, make("span", "quiet", [row.prompt_id, row.source].filter(Boolean).join(" · ")));
    const readout = make("div", "readout", NOTHING);
    readout.setAttribute("role", "status");
    add(node, top, tokenLine(row), readout, make("div", "bars"));
    node.row = row;
    paint(node, row);
    return node;
  }

  // The numbers of a token stand in the card below its text, where they cover nothing.
  function explain(node, index) {
    const row = node.row, place = row.action.slice(0, index + 1).filter(Boolean).length;
    const facts = [add(make("span"), make("code", "", JSON.stringify(row.tokens[index])), document.createTextNode(` action ${place}`))];
    const fact = (name, value, is) => facts.push(add(make("span", is ? "is" : ""), document.createTextNode(`${name} `), make("b", "", value)));
    for (const name of Object.keys(MEANING)) fact(MEANING[name][0], numberText(row[name][index], true), name === quantity);
    for (const [key, name] of [["logp", "π"], ["reference_logp", "π_ref"]]) {
      const logp = row[key]?.[index];
      if (logp !== undefined && logp !== null) fact(name, numberText(Math.exp(logp)));
    }
    if (row.reward[index]) fact("reward earned here", numberText(row.reward[index], true));
    node.querySelector(".readout").replaceChildren(...facts);
  }

  function leave() {
    list.querySelectorAll(".on").forEach((span) => span.classList.remove("on"));
    current?.node.querySelector(".readout").replaceChildren(document.createTextNode(NOTHING));
    current = null;
  }

  function point(node, index) {
    const span = node.querySelector(`.t[data-i="${index}"]`);
    leave();
    if (!span) return;
    span.classList.add("on");
    current = { node, index };
    explain(node, index);
  }

  function over(event) {
    const hit = event.target.closest?.("[data-i]");
    if (hit) point(hit.closest(".card"), Number(hit.dataset.i));
    else if (event.type === "click") leave();
  }

  function step(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const node = event.target.closest(".card");
    if (event.key === "Escape") leave();
    if (!by || !node) return;
    event.preventDefault();
    const actions = node.row.tokens.map((_, i) => i).filter((i) => node.row.action[i]);
    const place = current?.node === node ? actions.indexOf(current.index) + by : by > 0 ? 0 : actions.length - 1;
    point(node, actions[Math.max(0, Math.min(actions.length - 1, place))]);
  }

  function batch() {
    add(list, ...queue.slice(drawn, drawn + BATCH).map(card));
    drawn = Math.min(drawn + BATCH, queue.length);
    more.hidden = drawn >= queue.length;
    more.textContent = `show more (${queue.length - drawn} left)`;
  }

  function legend() {
    const [name, meaning] = MEANING[quantity];
    at("tokens-meaning").replaceChildren(make("b", "", name), document.createTextNode(`  ${meaning}`));
    at("tokens-low").textContent = `≤ ${numberText(-limit)}`;
    at("tokens-high").textContent = `≥ ${numberText(limit, true)}`;
    const stops = [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1].map((at) => colour(at * limit));
    at("tokens-ramp").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    for (const button of at("tokens-quantity").children) button.setAttribute("aria-pressed", button.value === quantity);
  }

  function update(repaint) {
    const run = Number(at("tokens-run").value), kind = at("tokens-kind").value;
    const mine = data.rows.filter((row) => row.run === run);
    limit = scale(at("tokens-same").checked ? data.rows : mine);
    legend();
    leave();
    if (repaint) { for (const node of list.children) paint(node, node.row); return; }
    queue = mine.filter((row) => kind === "" || row.kind === kind);
    list.replaceChildren();
    drawn = 0;
    batch();
  }

  addOptions(at("tokens-run"), data.runs.map((name, i) => [String(i), name]));
  const kinds = new Set(data.rows.map((row) => row.kind));
  if (kinds.size < 2) at("tokens-kind").parentElement.hidden = true;
  if (data.runs.length < 2) for (const id of ["tokens-run", "tokens-same"]) at(id).parentElement.hidden = true;
  at("tokens-quantity").addEventListener("click", (event) => {
    if (event.target.value) { quantity = event.target.value; update(true); }
  });
  for (const id of ["tokens-run", "tokens-kind"]) at(id).addEventListener("input", () => update(false));
  at("tokens-same").addEventListener("input", () => update(true));
  more.addEventListener("click", batch);
  list.addEventListener("pointerover", over);
  list.addEventListener("click", over);
  list.addEventListener("pointerleave", leave);
  list.addEventListener("keydown", step);
  update(false);
})();
