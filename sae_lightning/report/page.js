"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const AT_ONCE = 24;
  const $ = (selector) => document.querySelector(selector);

  // ---------------------------------------------------------------- small helpers

  // all texts enter the page through this function, which never parses them as HTML
  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("--")) node.style.setProperty(name, value);
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }
  const f1 = (x) => (x === null ? "n/a" : x.toFixed(3));
  const code = (x) => (x === null ? "∞" : x >= 1e4 || x < 1e-3 ? x.toExponential(1) : String(Number(x.toPrecision(3))));
  const share = (x) => (x === null ? "n/a" : x > 0 && x < 0.001 ? "< 0.1 %" : `${(100 * x).toFixed(1)} %`);
  const dot = (concept) => make("span", { class: "dot", "--c": data.concepts[concept][1] });
  const swatch = (sae) => make("span", { class: "swatch", "--c": sae.color });
  const names = (concepts) => concepts.map((c) => data.concepts[c][0]).join(", ");
  const isFound = (value) => value !== null && value >= data.found_above;
  function stats(pairs) {
    const known = pairs.filter(([, value]) => value !== null && value !== undefined);
    return make("dl", { class: "stats" }, ...known.map(([k, v]) => make("div", {}, make("dt", {}, k), make("dd", {}, v))));
  }

  // ---------------------------------------------------------------- examples

  // names the concepts of a sample, and marks it where they do not include the latent's
  function membership(sample, concept) {
    const own = sample[1];
    if (!data.concepts.length) return null;
    const other = concept !== null && own.length && !own.includes(concept);
    const text = own.length ? names(own) : "no concept";
    return make("span", { class: other ? "of other" : "of" }, text);
  }

  function textExample([place, value], top, concept) {
    const sample = data.samples[place];
    const [position, , before, token, after] = sample;
    const line = make("p", { dir: "auto", title: `sample ${position}` });
    if (before === undefined) line.append(`sample ${position}`);
    else if (!token) line.append(make("span", { class: "whole" }, after));
    else {
      // mark the token without surrounding whitespace, and show whitespace tokens as symbols
      const core = token.trim();
      const lead = core ? token.slice(0, token.indexOf(core)) : "";
      const tail = core ? token.slice(lead.length + core.length) : "";
      const shown = core || token.replace(/\n/g, "↵").replace(/ /g, "␣").replace(/\t/g, "⇥");
      line.append(before + lead, make("mark", {}, shown), tail + after);
    }
    line.append(membership(sample, concept) || "");
    return make("li", {}, make("div", { class: "code", "--v": value === null ? 1 : value / top }, code(value)), line);
  }

  function pictureExample([place, value], top, concept) {
    const sample = data.samples[place];
    const [position, , image, box] = sample;
    const img = make("img", { src: data.images[image], alt: `sample ${position}`, decoding: "async" });
    img.addEventListener("load", () => img.naturalWidth < 64 && img.classList.add("tiny"));
    const frame = make("span", { class: "frame", title: `sample ${position}` }, img);
    if (box) {
      const mark = make("span", { class: "box" });
      const [left, top_, right, bottom] = box.map((edge) => 100 * edge);
      Object.assign(mark.style, { left: `${left}%`, top: `${top_}%`, width: `${right - left}%`, height: `${bottom - top_}%` });
      frame.append(mark);
    }
    const bar = make("div", { class: "code", "--v": value === null ? 1 : value / top }, code(value));
    return make("li", {}, frame, bar, membership(sample, concept));
  }

  function examples(list, concept, limit = Infinity) {
    if (!list.length) return null;
    const kind = typeof data.samples[list[0][0]][2];
    const pictures = kind === "number";
    const draw = pictures ? pictureExample : textExample;
    const top = list[0][1] || 1;
    const items = list.slice(0, limit).map((example) => draw(example, top, concept));
    return make("ul", { class: `examples ${pictures ? "pictures" : kind === "undefined" ? "texts plain" : "texts"}` }, ...items);
  }

  // ---------------------------------------------------------------- concepts

  const byNumber = data.saes.map((sae) => new Map(sae.latents.map((latent) => [latent.i, latent])));

  function detectorCard(sae, s, concept) {
    const best = sae.best[concept];
    const found = isFound(best);
    const [first, ...others] = sae.detectors[concept];
    const head = make("div", { class: "head" }, make("h3", {}, swatch(sae), sae.name),
      make("span", { class: found ? "state" : "state hidden" }, best === null ? "no samples" : found ? "found" : "hidden"));
    const card = make("article", { class: `card ${found ? "hit" : "missed"}` }, head);
    if (!first) {
      card.append(make("p", { class: "empty" }, "No latent fires on this concept."));
      return card;
    }
    const latent = byNumber[s].get(first[0]);
    card.append(make("p", { class: "leads" }, link(s, first[0]), make("b", {}, `F1 ${f1(first[1])}`)));
    card.append(stats([["precision", f1(first[2])], ["recall", f1(first[3])]]));
    if (latent) card.append(examples(latent.examples, concept, 4) || "");
    if (others.length) {
      const rows = others.map(([i, ...scores]) =>
        make("tr", {}, make("td", {}, link(s, i)), ...scores.map((x) => make("td", {}, f1(x)))));
      const header = ["next best", "F1", "precision", "recall"].map((text) => make("th", { scope: "col" }, text));
      card.append(make("table", { class: "rest" }, make("thead", {}, make("tr", {}, ...header)), make("tbody", {}, ...rows)));
    }
    return card;
  }

  function link(s, number) {
    if (!byNumber[s].has(number)) return make("span", { class: "number" }, `#${number}`);
    const go = (event) => {
      event.preventDefault();
      show(s, `#${number}`);
      $("#latents").scrollIntoView();
    };
    return make("a", { class: "number", href: "#latents", onclick: go }, `#${number}`);
  }

  function showConcept(concept) {
    document.querySelectorAll(".choices button").forEach((b, i) => b.setAttribute("aria-pressed", i === concept));
    $(".detectors").replaceChildren(...data.saes.map((sae, s) => detectorCard(sae, s, concept)));
  }

  if (data.concepts.length) {
    $(".legend").hidden = $("#concepts").hidden = false;
    $(".threshold").textContent = data.found_above;
    $(".detectors").classList.toggle("few", data.saes.length <= 4);
    const several = data.saes.length > 1;
    $(".choices").append(...data.concepts.map(([name], c) => {
      const finders = data.saes.filter((sae) => isFound(sae.best[c])).length;
      const count = several ? `${finders}/${data.saes.length}` : finders ? "" : "○";
      const hint = several ? `found by ${finders} of ${data.saes.length} SAEs` : finders ? "found" : "hidden";
      return make("button", { type: "button", title: hint, onclick: () => showConcept(c) }, dot(c), name, make("i", {}, count));
    }));
    showConcept(0);
  }

  // ---------------------------------------------------------------- latents

  const down = (key) => (a, b) => (key(b) ?? -1) - (key(a) ?? -1) || a.i - b.i;
  const ORDERS = {
    "concept, best F1 first": data.concepts.length && ((a, b) =>
      (a.concept ?? 1e9) - (b.concept ?? 1e9) || down((l) => l.detects && l.detects[1])(a, b)),
    "F1 for its concept": data.concepts.length && down((l) => l.detects && l.detects[1]),
    "fires most often": down((l) => l.frequency),
    "fires least often": (a, b) => a.frequency - b.frequency || a.i - b.i,
    "largest mean code": down((l) => l.mean),
    "monosemanticity": data.concepts.length && down((l) => l.mono),
    "number": (a, b) => a.i - b.i,
  };
  const search = $("#latents input");
  const order = $("#latents .order");
  const without = $("#latents .without");
  let current = 0;
  let waiting = [];

  function haystack(latent) {
    if (latent.text === undefined) {
      const seen = latent.examples.map(([place]) => data.samples[place].slice(2, 5).filter((part) => typeof part === "string").join(""));
      latent.text = [latent.concept === null ? "" : data.concepts[latent.concept][0], ...seen].join("\n").toLowerCase();
    }
    return latent.text;
  }

  function matches(latent, query) {
    if (/^#\d+$/.test(query)) return String(latent.i) === query.slice(1);
    if (/^\d+$/.test(query) && String(latent.i).startsWith(query)) return true;
    return haystack(latent).includes(query);
  }

  function latentCard(latent) {
    const about = latent.detects
      ? make("span", { class: "tag" }, dot(latent.concept), `${data.concepts[latent.concept][0]} · F1 ${f1(latent.detects[1])}`)
      : null;
    const scores = latent.detects || [];
    return make("article", { class: "card" },
      make("div", { class: "head" }, make("h3", { class: "number" }, `#${latent.i}`), about),
      stats([
        ["fires on", share(latent.frequency)],
        ["mean code", latent.mean === null ? null : code(latent.mean)],
        ["precision", latent.detects ? f1(scores[2]) : null],
        ["recall", latent.detects ? f1(scores[3]) : null],
        ["monosem.", latent.mono === null ? null : f1(latent.mono)],
      ]),
      examples(latent.examples, latent.concept));
  }

  function drawMore() {
    $(".cards").append(...waiting.splice(0, AT_ONCE).map(latentCard));
  }

  function draw() {
    const sae = data.saes[current];
    const query = search.value.trim().toLowerCase();
    const alone = without.value === "" ? null : new Set(sae.alone[without.value] || []);
    const chosen = (latent) => (!query || matches(latent, query)) && (!alone || alone.has(latent.i));
    waiting = sae.latents.filter(chosen).sort(ORDERS[order.value]);
    const part = sae.latents.length < sae.size ? `${sae.latents.length} of ${sae.size}` : `all ${sae.size}`;
    $("#latents > .count").textContent = query || alone
      ? `${waiting.length} of ${sae.latents.length} latents of ${sae.name} match`
      : `${sae.name}: ${part} latents`;
    $(".cards").replaceChildren();
    drawMore();
  }

  function show(s, query) {
    current = s;
    if (query !== undefined) search.value = query;
    document.querySelectorAll(".segments button").forEach((b, i) => b.setAttribute("aria-pressed", i === s));
    const choice = $(".which select");
    if (choice) choice.value = s;
    if (without.value === String(s) || query !== undefined) without.value = "";
    [...without.options].forEach((option) => (option.hidden = option.value === String(s)));
    draw();
  }

  if (data.saes.some((sae) => sae.latents.length)) {
    $("#latents").hidden = false;
    order.append(...Object.entries(ORDERS).filter(([, compare]) => compare).map(([name]) => make("option", { value: name }, name)));
    const many = data.saes.length > 5;
    if (many) {
      const options = data.saes.map((sae, s) => make("option", { value: s }, sae.name));
      $(".which").append(make("label", { class: "field" }, make("span", {}, "SAE"),
        make("select", { onchange: (event) => show(Number(event.target.value)) }, ...options)));
    } else if (data.saes.length > 1) {
      const buttons = data.saes.map((sae, s) => make("button", { type: "button", onclick: () => show(s) }, sae.name));
      $(".which").append(make("div", { class: "segments", role: "group", "aria-label": "SAE" }, ...buttons));
    } else {
      $(".which").hidden = true;
    }
    let timer = 0;
    search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(draw, 120);
    });
    order.addEventListener("change", draw);
    if (data.saes.some((sae) => Object.keys(sae.alone).length)) {
      without.append(make("option", { value: "" }, "any"), ...data.saes.map((sae, s) => make("option", { value: s }, sae.name)));
      without.addEventListener("change", draw);
      without.closest("label").hidden = false;
    }
    new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && drawUntilFull(), { rootMargin: "900px" })
      .observe($(".more"));
    show(0);
  }

  // IntersectionObserver reports changes only, so check again while the end of the list stays in view
  function drawUntilFull() {
    if (!waiting.length) return;
    drawMore();
    requestAnimationFrame(() => $(".more").getBoundingClientRect().top < innerHeight + 900 && drawUntilFull());
  }

  // ---------------------------------------------------------------- figures

  const large = $(".large");
  document.querySelectorAll(".zoom").forEach((button) => button.addEventListener("click", () => {
    large.querySelector("img").src = button.querySelector("img").src;
    large.querySelector("img").alt = button.querySelector("img").alt;
    large.showModal();
  }));
  large.addEventListener("click", () => large.close());
})();
