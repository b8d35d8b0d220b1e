"use strict";
// The completion browser filters and sorts all rows at once and draws their cards a screen at a time.

(function () {
  const data = embeddedData("completions-data");
  if (!data) return;
  const [RUN, STEP, PROMPT, COMPLETION, REFERENCE, REWARD, REFERENCE_REWARD, KL, TOKENS, ENDED] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
  const BATCH = 20, LONG = 600;
  const at = (id) => document.getElementById(id);
  const list = at("completions-list"), more = at("completions-more"), count = at("completions-count");
  const lower = data.texts.map((text) => text.toLowerCase());
  const length = (row) => row[TOKENS] ?? (data.texts[row[COMPLETION]] ?? "").length;
  const difference = (row) => (row[REWARD] === null || row[REFERENCE_REWARD] === null ? null : row[REWARD] - row[REFERENCE_REWARD]);
  const keys = {
    reward: (row) => row[REWARD], difference, length, kl: (row) => row[KL], reference: (row) => row[REFERENCE_REWARD],
  };
  let matching = [], drawn = 0, words = "";

  function highlighted(text) {
    const node = make("div", "body-text");
    if (!words) { node.textContent = text; return node; }
    const small = text.toLowerCase();
    let from = 0;
    for (let found = small.indexOf(words); found >= 0 && small.length === text.length; found = small.indexOf(words, from)) {
      add(node, document.createTextNode(text.slice(from, found)), make("mark", "", text.slice(found, found + words.length)));
      from = found + words.length;
    }
    return add(node, document.createTextNode(text.slice(from)));
  }

  // A long prompt shows its end first, because the policy answered its last turn.
  function promptBlock(text) {
    const node = make("div", "prompt");
    add(node, highlighted(text.trim()));
    if (words && text.toLowerCase().includes(words)) return node;
    if (text.length <= LONG && text.trim().split("\n").length <= 5) return node;
    node.classList.add("clamp");
    node.title = "click to read all of it";
    node.addEventListener("click", () => { node.classList.remove("clamp"); node.removeAttribute("title"); });
    return node;
  }

  function completionColumn(who, text, reward, gain) {
    const column = make("div");
    const top = add(make("div", "who"), make("span", "", who));
    const right = make("span");
    if (reward !== null) add(right, document.createTextNode("reward "), make("b", "", numberText(reward)));
    if (gain !== null) add(right, document.createTextNode(` (${numberText(gain, true)})`));
    add(column, add(top, right));
    if (text === undefined) return add(column, make("div", "quiet", "no answer of the reference was kept"));
    return add(column, text.trim() === "" ? make("div", "quiet", "(empty)") : highlighted(text.trim()));
  }

  function card(row) {
    const node = make("article", "card");
    const top = add(make("div", "top"), make("b", "", data.runs[row[RUN]]));
    add(top, make("span", "", typeof row[STEP] === "number" ? `step ${row[STEP]}` : row[STEP]));
    if (row[TOKENS] !== null) add(top, make("span", "", `${row[TOKENS]} tokens${row[ENDED] === false ? ", cut off" : ""}`));
    if (row[KL] !== null) add(top, make("span", "", `log-ratio ${numberText(row[KL])} nats`));
    const pair = add(
      make("div", "pair"),
      completionColumn("policy", data.texts[row[COMPLETION]] ?? "", row[REWARD], difference(row)),
      completionColumn("reference", data.texts[row[REFERENCE]], row[REFERENCE_REWARD], null),
    );
    return add(node, top, promptBlock(data.texts[row[PROMPT]] ?? ""), pair);
  }

  function batch() {
    add(list, ...matching.slice(drawn, drawn + BATCH).map(card));
    drawn = Math.min(drawn + BATCH, matching.length);
    more.hidden = drawn >= matching.length;
    more.textContent = `show more (${(matching.length - drawn).toLocaleString("en")} left)`;
  }

  function update() {
    words = at("completions-search").value.trim().toLowerCase();
    const run = at("completions-run").value, step = at("completions-step").value;
    const hit = words ? lower.map((text) => text.includes(words)) : null;
    const has = (row) => hit[row[PROMPT]] || hit[row[COMPLETION]] || hit[row[REFERENCE]];
    matching = data.rows.filter((row) =>
      (run === "" || row[RUN] === Number(run)) && (step === "" || String(row[STEP]) === step) && (!hit || has(row)));
    const [by, direction] = at("completions-sort").value.split(" ");
    if (keys[by]) {
      const sign = direction === "up" ? 1 : -1, key = keys[by];
      matching.sort((a, b) => {
        const x = key(a), y = key(b);
        return x === null || y === null ? (x === null) - (y === null) : sign * (x - y);
      });
    }
    count.textContent = `${matching.length.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")}`;
    list.replaceChildren();
    drawn = 0;
    batch();
  }

  addOptions(at("completions-run"), [["", "all runs"], ...data.runs.map((name, i) => [String(i), name])]);
  const steps = [...new Set(data.rows.map((row) => row[STEP]))];
  addOptions(at("completions-step"), [["", "all steps"], ...steps.map((s) => [String(s), typeof s === "number" ? `step ${s}` : s])]);
  for (const id of ["search", "run", "step", "sort"]) at(`completions-${id}`).addEventListener("input", update);
  more.addEventListener("click", batch);
  new IntersectionObserver((seen) => { if (drawn && !more.hidden && seen[0].isIntersecting) batch(); }, { rootMargin: "400px" }).observe(more);
  update();
})();
