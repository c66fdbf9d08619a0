"use strict";
// The gallery: filters, order, pages and keys over the entries of the JSON block. What a model or a benchmark said
// becomes text nodes and the values of fixed attributes, never markup. The state lives in the address: #show=fixed&q=…
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const entries = data.entries.map((entry, place) => ({ ...entry, place }));
  const last = data.systems.length - 1;
  const PAGE = 25;
  const AGAINST = String(data.against);
  const CLEAR = { show: "all", against: AGAINST, invalid: "", empty: "", cut: "", dataset: "", q: "", sort: "order" };
  const DEFAULTS = { ...CLEAR, gold: "", page: "1", id: "" };
  const KINDS = { fixed: "fixed", broken: "broken", both_wrong: "both wrong", both_right: "both right",
                  right: "right", wrong: "wrong", not_scored: "not scored" };
  const at = (id) => document.getElementById(id);
  let state = { ...DEFAULTS };
  let found = [];

  const overlap = (entry, system) => entry.systems[system]?.overlap ?? null;
  const gain = (entry) => {
    const pair = [overlap(entry, last), overlap(entry, Number(state.against))];
    return pair.includes(null) ? null : pair[0] - pair[1];
  };
  // label, and what an entry is put in order by: smaller first, null last
  const SORTS = {
    order: ["as asked", (entry) => entry.place],
    worst: ["box overlap, lowest first", (entry) => overlap(entry, last)],
    best: ["box overlap, highest first", (entry) => negative(overlap(entry, last))],
    gained: ["box overlap, most gained first", (entry) => negative(gain(entry))],
    lost: ["box overlap, most lost first", (entry) => gain(entry)],
    long: ["longest completion first", (entry) => negative(entry.systems[last]?.tokens ?? null)],
  };
  const negative = (value) => (value === null ? null : -value);

  // --- which entries

  function outcome(entry) {
    const after = entry.systems[last];
    const before = entry.systems[Number(state.against)];
    if (!after || !before || after.correct === null || before.correct === null) return "not_scored";
    if (last === 0) return after.correct ? "right" : "wrong";
    if (before.correct) return after.correct ? "both_right" : "broken";
    return after.correct ? "fixed" : "both_wrong";
  }

  function words(entry) {
    const said = entry.systems.filter(Boolean).map((row) => [row.answer ?? "", ...row.blocks.map(blockText)].join(" "));
    return [entry.id, entry.dataset, entry.question, entry.gold, ...said].join(" ").toLowerCase();
  }
  const blockText = (block) => `<${block.tag}> ${block.pieces.map((piece) => piece[1]).join("")}`;
  const haystacks = new Map();
  function haystack(entry) {
    if (!haystacks.has(entry)) haystacks.set(entry, words(entry));
    return haystacks.get(entry);
  }

  const TOGGLES = {
    invalid: (entry) => entry.systems[last] !== null && !entry.systems[last].valid,
    empty: (entry) => entry.systems[last] !== null && entry.systems[last].boxes.length === 0,
    cut: (entry) => entry.systems[last] !== null && entry.systems[last].cut,
  };
  const TESTS = {
    show: (entry) => state.show === "all" || outcome(entry) === state.show,
    invalid: (entry) => !state.invalid || TOGGLES.invalid(entry),
    empty: (entry) => !state.empty || TOGGLES.empty(entry),
    cut: (entry) => !state.cut || TOGGLES.cut(entry),
    dataset: (entry) => !state.dataset || entry.dataset === state.dataset,
    q: (entry) => !state.q || haystack(entry).includes(state.q.toLowerCase()),
  };
  const passing = (except) => {
    const tests = Object.entries(TESTS).filter(([name]) => name !== except).map(([, test]) => test);
    return entries.filter((entry) => tests.every((test) => test(entry)));
  };

  function ordered(list) {
    const key = SORTS[state.sort][1];
    const keyed = list.map((entry, place) => [key(entry), place, entry]);
    keyed.sort(([a, i], [b, j]) => (a === b ? i - j : a === null ? 1 : b === null ? -1 : a - b));
    return keyed.map(([, , entry]) => entry);
  }

  // --- elements

  function el(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(name, value);
    node.append(...children.filter((child) => child !== null && child !== ""));
    return node;
  }
  const note = (...children) => el("p", { class: "note" }, ...children);
  const colour = (number) => `b${number % data.colours}`;

  function verdict(row) {
    if (row.error) return el("span", { class: "bad" }, `failed: ${row.error}`);
    if (row.correct === null) return el("span", { class: "soft" }, "not scored");
    if (row.correct) return el("span", { class: "good" }, "right");
    return row.lenient ? el("span", { class: "soft" }, "right, untagged") : el("span", { class: "bad" }, "wrong");
  }

  function boxOn([left, top, width, height], kind, label) {
    const edges = `${top < 8 ? " high" : ""}${left > 80 ? " right" : ""}`;
    const node = el("span", { class: `box ${kind}${edges}` }, label ? el("b", {}, label) : null);
    Object.assign(node.style, { left: `${left}%`, top: `${top}%`, width: `${width}%`, height: `${height}%` });
    return node;
  }

  function picture(entry, row, title) {
    if (entry.picture === null) return el("p", { class: "blank" }, "The picture was not kept.");
    const [width, height] = entry.size;
    const count = row.boxes.length === 1 ? "1 box" : `${row.boxes.length} boxes`;
    const image = el("img", { loading: "lazy", decoding: "async", width, height, alt: `${count} of ${title}` });
    image.src = data.pictures[entry.picture];
    const gold = entry.boxes.map((box) => boxOn(box, "gold", null));
    const own = row.boxes.map((box, number) => boxOn(box, colour(number), String(number + 1)));
    own.forEach((box, number) => (box.dataset.box = number));
    const frame = el("div", { class: "frame" }, image, ...gold, ...own);
    const place = note(`image 1 of ${entry.more.length + 1}; all boxes are taken to be on it`);
    return entry.more.length ? el("div", {}, frame, place) : frame;
  }

  function pictures(entry) {
    const all = [entry.picture, ...entry.more];
    return el("div", { class: "pictures" }, ...all.map((number, index) => {
      const place = `image ${index + 1} of ${all.length}`;
      if (number === null) return note(`${place}: not kept`);
      const [width, height] = data.sizes[number];
      const image = el("img", { loading: "lazy", decoding: "async", width, height, alt: place });
      image.src = data.pictures[number];
      return el("div", {}, image, note(place));
    }));
  }

  function piece([kind, text, box]) {
    if (kind === "box" && box !== undefined) {
      const look = { class: colour(box), tabindex: 0, title: `box ${box + 1}`, "data-box": box };
      return el("mark", look, text, el("sup", {}, String(box + 1)));
    }
    if (kind === "text") return text;
    return el("span", { class: kind === "box" ? "undrawn" : "tag" }, text);
  }

  function block({ tag, closed, pieces }) { // GRIT's prompt asks for an opening answer tag only
    const trimmed = pieces.map(([kind, text, box], i) => [kind, i === 0 ? text.trimStart() : text, box]);
    if (!tag) return el("p", { class: "text outside" }, ...trimmed.map(piece));
    const label = el("span", {}, closed || tag === "answer" ? tag : `${tag}, not closed`);
    return el("div", { class: `block ${tag}` }, label, el("p", { class: "text" }, ...trimmed.map(piece)));
  }

  function scores(row) {
    const items = row.scores.map(([name, value]) => {
      return el("div", {}, el("dt", {}, name), el("dd", {}, ["tokens", "boxes"].includes(name) ? String(value) : value.toFixed(2)));
    });
    const flags = [row.valid ? "valid format" : "format invalid", ...(row.cut ? ["cut off"] : [])];
    return el("dl", { class: "scores" }, ...items, ...flags.map((flag) => el("div", {}, el("dt", {}, flag))));
  }

  function figure(entry, index) {
    const row = entry.systems[index];
    const { title } = data.systems[index];
    if (!row) return el("figure", {}, el("p", { class: "blank" }, `${title}: no row`));
    const empty = row.blocks.length ? null : el("p", { class: "text outside" }, el("span", { class: "tag" }, "(empty)"));
    const body = el("div", {},
      el("figcaption", {}, el("b", {}, title), verdict(row)),
      el("p", { class: "said" }, row.answer === null ? el("span", { class: "soft" }, "no answer") : `“${row.answer}”`),
      ...row.blocks.map(block), empty, scores(row));
    return el("figure", {}, picture(entry, row, title), body);
  }

  function brief(entry, index) {
    const row = entry.systems[index];
    const { title } = data.systems[index];
    return row ? note(`${title}: “${row.answer ?? ""}”, `, verdict(row)) : note(`${title}: no row`);
  }

  function article(entry) {
    const pictured = data.systems.map((_, index) => index).filter((index) => !data.systems[index].plain);
    const shown = pictured.length ? pictured : [last];
    const others = data.systems.map((_, index) => index).filter((index) => !shown.includes(index));
    const heading = `entry-${entry.place}`;
    const own = address({ ...state, page: DEFAULTS.page, id: entry.id }); // the page is where the question is
    const link = el("a", { href: own, title: "address of this question, among those shown" }, entry.id);
    return el("article", { class: "case", tabindex: -1, "aria-labelledby": heading, "data-entry": entry.place },
      el("h3", { id: heading }, entry.question || "(no question)"),
      note("Answer: ", el("b", {}, entry.gold), ` · ${entry.dataset} · ${KINDS[outcome(entry)]} · `, link),
      ...others.map((index) => brief(entry, index)),
      entry.more.length ? pictures(entry) : null,
      el("div", { class: shown.length > 2 ? "row three" : "row" }, ...shown.map((index) => figure(entry, index))));
  }

  // --- the page

  const pages = () => Math.max(1, Math.ceil(found.length / PAGE));
  const current = () => found.findIndex((entry) => entry.id === state.id);

  function count(button, number) {
    button.querySelector("b").textContent = number;
  }

  function tally(names) {
    const counts = new Map();
    for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
    return counts;
  }

  function showFilters() {
    const byOutcome = tally(passing("show").map(outcome));
    for (const button of document.querySelectorAll("[data-show]")) {
      const { show } = button.dataset;
      count(button, show === "all" ? passing("show").length : byOutcome.get(show) ?? 0);
      button.setAttribute("aria-pressed", state.show === show);
      if (show === "not_scored") button.hidden = !entries.some((entry) => outcome(entry) === show);
    }
    for (const button of document.querySelectorAll("[data-toggle]")) {
      const { toggle } = button.dataset;
      count(button, passing(toggle).filter(TOGGLES[toggle]).length);
      button.setAttribute("aria-pressed", Boolean(state[toggle]));
    }
    const byDataset = tally(passing("dataset").map((entry) => entry.dataset));
    for (const option of at("dataset").options) {
      const number = option.value ? byDataset.get(option.value) ?? 0 : passing("dataset").length;
      option.textContent = `${option.value || "all"} (${number})`;
    }
    at("dataset").value = state.dataset;
    at("sort").value = state.sort;
    if (at("query").value !== state.q) at("query").value = state.q;
    if (at("against")) at("against").value = state.against;
    at("gold").setAttribute("aria-pressed", Boolean(state.gold));
    at("gold").hidden = !entries.some((entry) => entry.boxes.length);
    at("entries").classList.toggle("with-gold", Boolean(state.gold));
  }

  function draw(list) {
    at("entries").replaceChildren(...list.map(article));
    if (!list.length) at("entries").append(el("p", { class: "empty soft" }, `None of the ${data.noun} passes these filters.`));
    mark();
  }

  function mark() {
    for (const node of at("entries").querySelectorAll(".case")) {
      node.classList.toggle("here", entries[node.dataset.entry].id === state.id);
    }
  }

  function show() {
    found = ordered(passing(null));
    const place = current();
    if (place >= 0) state.page = String(Math.floor(place / PAGE) + 1);
    const page = Math.min(Math.max(1, Number(state.page) || 1), pages());
    state.page = String(page);
    showFilters();
    const all = found.length === entries.length;
    at("status").textContent = `${all ? "" : `${found.length} of `}${entries.length} ${data.noun}`;
    at("reset").hidden = all;
    document.querySelector(".pager").hidden = pages() < 2;
    at("page").textContent = `page ${page} of ${pages()}`;
    at("before").disabled = page === 1;
    at("after").disabled = page === pages();
    draw(found.slice((page - 1) * PAGE, page * PAGE));
    document.documentElement.style.setProperty("--bar", `${barHeight()}px`);
  }

  function barHeight() {
    const bar = document.querySelector(".bar");
    return getComputedStyle(bar).position === "sticky" ? bar.offsetHeight : 0;
  }

  // --- the address

  function address(values) {
    return `#${new URLSearchParams(Object.entries(values).filter(([name, value]) => value !== DEFAULTS[name]))}`;
  }

  function write() {
    history.replaceState(null, "", address(state));
  }

  function read() {
    const said = new URLSearchParams(location.hash.slice(1));
    const next = { ...DEFAULTS };
    for (const name of Object.keys(DEFAULTS)) if (said.has(name)) next[name] = said.get(name);
    if (!location.hash.includes("=")) next.id = first([...said.keys()][0] ?? ""); // a bare #id
    if (!document.querySelector(`[data-show="${CSS.escape(next.show)}"]`)) next.show = "all";
    if (!(Number(next.against) >= 0 && Number(next.against) < Math.max(1, last))) next.against = AGAINST;
    if (!Object.hasOwn(SORTS, next.sort)) next.sort = "order";
    return next;
  }

  function first(id) {
    return entries.find((entry) => entry.id === id || entry.id.startsWith(`${id}, draw `))?.id ?? id;
  }

  function follow() {
    state = read();
    show();
    if (state.id && current() < 0 && entries.some((entry) => entry.id === state.id)) {
      Object.assign(state, CLEAR); // a link to a question that the filters hide is stronger than they are
      show();
    }
    if (current() >= 0) reach();
  }

  function change(values) {
    state = { ...state, page: "1", id: "", ...values };
    show();
    write();
  }

  // --- moving

  function reach() {
    const index = entries.findIndex((entry) => entry.id === state.id);
    const node = at("entries").querySelector(`[data-entry="${index}"]`);
    node.focus({ preventScroll: true });
    node.scrollIntoView({ block: "start" });
  }

  function firstInView() {
    const nodes = [...at("entries").querySelectorAll(".case")];
    const node = nodes.find((one) => one.getBoundingClientRect().bottom > barHeight() + 40);
    return node ? found.indexOf(entries[node.dataset.entry]) : 0;
  }

  function step(by) {
    const place = current() >= 0 ? current() + by : firstInView();
    if (place < 0 || place >= found.length) return;
    state.id = found[place].id;
    if (Math.floor(place / PAGE) + 1 === Number(state.page)) mark();
    else show();
    write();
    reach();
  }

  function turn(by) {
    state = { ...state, id: "", page: String(Number(state.page) + by) };
    show();
    write();
    at("entries").scrollIntoView({ block: "start" });
  }

  const KEYS = {
    j: () => step(1), ArrowRight: () => step(1), k: () => step(-1), ArrowLeft: () => step(-1),
    "/": () => at("query").focus(), g: () => change({ gold: state.gold ? "" : "1", page: state.page, id: state.id }),
  };

  // --- boxes in the text and in the picture

  function light(event) {
    const node = event.target.closest?.("[data-box]") ?? null;
    for (const lit of at("entries").querySelectorAll(".lit, .has-lit")) lit.classList.remove("lit", "has-lit");
    const inside = node?.closest("figure");
    if (!inside) return;
    inside.classList.add("has-lit");
    for (const same of inside.querySelectorAll(`[data-box="${Number(node.dataset.box)}"]`)) same.classList.add("lit");
  }

  // --- what the reader does

  for (const [name, [label]] of Object.entries(SORTS)) at("sort").append(el("option", { value: name }, label));
  for (const button of document.querySelectorAll("[data-show]")) {
    button.addEventListener("click", () => change({ show: button.dataset.show }));
  }
  for (const button of document.querySelectorAll("[data-toggle]")) {
    const { toggle } = button.dataset;
    button.addEventListener("click", () => change({ [toggle]: state[toggle] ? "" : "1" }));
  }
  for (const name of ["dataset", "sort", "against"]) {
    at(name)?.addEventListener("change", (event) => change({ [name]: event.target.value }));
  }
  at("query").addEventListener("input", (event) => change({ q: event.target.value }));
  at("gold").addEventListener("click", KEYS.g);
  at("reset").addEventListener("click", () => change(CLEAR));
  at("before").addEventListener("click", () => turn(-1));
  at("after").addEventListener("click", () => turn(1));
  for (const kind of ["pointerover", "focusin"]) at("entries").addEventListener(kind, light);
  at("entries").addEventListener("pointerleave", light);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (!Object.hasOwn(KEYS, event.key)) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  addEventListener("hashchange", follow);
  addEventListener("beforeprint", () => draw(found));
  addEventListener("afterprint", show);
  follow();
})();
