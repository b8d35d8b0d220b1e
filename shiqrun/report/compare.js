"use strict";
// One prompt with the answers of all methods side by side; the rows are those of the completion browser.

(function () {
  const data = embeddedData("completions-data"), about = embeddedData("compare-data");
  if (!data || !about) return;
  const [RUN, STEP, PROMPT, COMPLETION, REFERENCE, REWARD, REFERENCE_REWARD, KL, TOKENS, ENDED] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
  const at = (id) => document.getElementById(id);
  const methodOf = (row) => about.method_of[row[RUN]], seedOf = (row) => about.seed_of[row[RUN]];
  const byPrompt = new Map();
  for (const row of data.rows) {
    if (!byPrompt.has(row[PROMPT])) byPrompt.set(row[PROMPT], []);
    byPrompt.get(row[PROMPT]).push(row);
  }
  const all = [...byPrompt.keys()].filter((prompt) => new Set(byPrompt.get(prompt).map(methodOf)).size > 1);
  let prompts = all;

  // A method's answer with the chosen seed, else with any; of the last step of training before an evaluation's.
  function answers(prompt) {
    const seed = at("compare-seed").value;
    return about.methods.map((_, method) => {
      const rows = byPrompt.get(prompt).filter((row) => methodOf(row) === method);
      const same = rows.filter((row) => seed === "" || seedOf(row) === seed);
      return { row: same.find((row) => typeof row[STEP] === "number") ?? same[0], count: same.length };
    });
  }

  function spread(prompt) {
    const rewards = answers(prompt).map(({ row }) => row?.[REWARD]).filter((reward) => typeof reward === "number");
    return rewards.length ? Math.max(...rewards) - Math.min(...rewards) : -1;
  }

  function column(name, colour, small, reward, facts, text) {
    const top = make("div", "top");
    if (colour) { const dot = make("span", "swatch"); dot.style.background = colour; add(top, dot); }
    add(top, make("b", "", name), small ? make("small", "", small) : null);
    const numbers = make("div", "numbers");
    if (typeof reward === "number") add(numbers, document.createTextNode("reward "), make("b", "", numberText(reward)));
    add(numbers, document.createTextNode(facts.map((fact) => ` ${fact}`).join(" ·")));
    const body = text === undefined ? make("div", "none quiet", "no answer with this seed") : make("div", text.trim() ? "body-text" : "none quiet", text.trim() || "(empty)");
    return add(make("article", "card"), top, numbers, body);
  }

  function draw() {
    const prompt = Number(at("compare-prompt").value), found = answers(prompt), grid = at("compare-grid");
    at("compare-asked").textContent = (data.texts[prompt] ?? "").trim();
    grid.replaceChildren();
    const known = byPrompt.get(prompt).find((row) => data.texts[row[REFERENCE]] !== undefined);
    if (known) add(grid, column("reference", "", about.reference, known[REFERENCE_REWARD], [], data.texts[known[REFERENCE]]));
    found.forEach(({ row, count }, method) => {
      const { name, colour, small } = about.methods[method], facts = [];
      if (!row) { add(grid, column(name, colour, small, null, [], undefined)); return; }
      const gain = row[REWARD] === null || row[REFERENCE_REWARD] === null ? null : row[REWARD] - row[REFERENCE_REWARD];
      if (gain !== null) facts.push(`(${numberText(gain, true)})`);
      if (row[KL] !== null) facts.push(`log-ratio ${numberText(row[KL])} nats`);
      if (row[TOKENS] !== null) facts.push(`${row[TOKENS]} tokens${row[ENDED] === false ? ", cut off" : ""}`);
      if (count > 1) facts.push(`1 of ${count} answers`);
      add(grid, column(name, colour, small, row[REWARD], facts, data.texts[row[COMPLETION]] ?? ""));
    });
    const place = prompts.indexOf(prompt);
    at("compare-place").textContent = `prompt ${place + 1} of ${prompts.length}`;
  }

  function list() {
    prompts = at("compare-order").value === "spread" ? all.map((p) => [spread(p), p]).sort((a, b) => b[0] - a[0]).map((pair) => pair[1]) : all;
    at("compare-prompt").replaceChildren();
    const short = (text) => (text.length > 90 ? `${text.slice(0, 45)} … ${text.slice(-42)}` : text);
    addOptions(at("compare-prompt"), prompts.map((p, i) => [String(p), `${i + 1}. ${short((data.texts[p] ?? "").trim().replace(/\s+/g, " "))}`]));
    draw();
  }

  function turn(by) {
    const select = at("compare-prompt");
    select.selectedIndex = (select.selectedIndex + by + prompts.length) % prompts.length;
    draw();
  }

  if (!all.length) { at("compare").hidden = true; return; }
  const seeds = [...new Set(about.seed_of)];
  addOptions(at("compare-seed"), seeds.map((seed) => [seed, seed]));
  if (seeds.length < 2) at("compare-seed").parentElement.hidden = true;
  at("compare-prompt").addEventListener("input", draw);
  at("compare-seed").addEventListener("input", list);
  at("compare-order").addEventListener("input", list);
  at("compare-back").addEventListener("click", () => turn(-1));
  at("compare-on").addEventListener("click", () => turn(1));
  list();
})();
