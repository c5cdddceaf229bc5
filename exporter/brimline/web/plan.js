"use strict";
// The planning page. All that comes from the server is set as text, never as markup.
(() => {
  const choices = JSON.parse(document.getElementById("choices").textContent);
  const page = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  const engines = new Map(choices.engines.map((engine) => [engine.name, engine]));
  const MAX_FILE_BYTES = 4 * 1024 * 1024;
  const NAMES = { weights: "weights", kv_cache: "KV cache", activations: "activations", cuda_graphs: "CUDA graphs",
    runtime: "runtime", lora: "LoRA slots", encoder_cache: "encoder cache", draft_model: "draft model" };
  const LIGHT_TEXT = new Set(["weights"]);
  const byId = (id) => document.getElementById(id);

  // --- numbers as people read them

  function bytes(count) {
    if (count === null || count === undefined) return "–";
    let size = count, unit = "B";
    for (const next of ["KiB", "MiB", "GiB", "TiB"]) {
      if (Math.abs(size) < 1024) break;
      size /= 1024; unit = next;
    }
    return `${signed(size, unit === "B" ? 0 : 2)} ${unit}`;
  }
  const signed = (number, digits) => number.toFixed(digits).replace("-", "−");
  // Bounds in the unit of the larger one, so that they compare at a glance.
  function between(low, high) {
    const [, unit] = bytes(Math.max(Math.abs(low), Math.abs(high))).split(" ");
    const size = { B: 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 }[unit];
    const digits = unit === "B" ? 0 : 2;
    return `${signed(low / size, digits)} to ${signed(high / size, digits)} ${unit}`;
  }
  const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
  const count = (number) => (number === null || number === undefined ? "–" : whole.format(number));
  function requests(number) {
    if (number === null || number === undefined) return "–";
    return number >= 100 ? count(number) : number.toFixed(number >= 10 ? 1 : 2);
  }
  // 32768 is 32K and 33000 is 33,000: upper-case K is 1024, as vLLM reads it.
  function tokens(number) {
    if (number >= 1048576 && number % 1048576 === 0) return `${number / 1048576}M`;
    if (number >= 1024 && number % 512 === 0) return `${number / 1024}K`;
    return count(number);
  }
  const capital = (text) => text[0].toUpperCase() + text.slice(1);
  const percent = (ratio) => `${ratio >= 0 ? "+" : "−"}${Math.abs(100 * ratio).toFixed(1)} %`;

  // --- building the document

  function make(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === undefined || value === null || value === false) continue;
      if (key === "class") element.className = value;
      else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else element.setAttribute(key, value === true ? "" : value);
    }
    element.append(...children);
    return element;
  }
  function draw(name, attributes = {}, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }
  function option(value, text, chosen = false) {
    return make("option", { value, selected: chosen }, text);
  }
  // Options are replaced only where they differ, so that a list that is open stays open.
  function fill(select, entries, chosen) {
    const key = JSON.stringify(entries);
    if (select.dataset.key !== key) {
      select.replaceChildren(...entries.map(([value, text]) => option(value, text)));
      select.dataset.key = key;
    }
    select.value = chosen;
  }
  const show = (id, yes) => { byId(id).hidden = !yes; };

  // --- what is planned

  const state = {
    source: null,      // {kind: "target" | "model", name} or {kind: "config", name, text}
    sources: [],       // what the select offers, by position
    turned: {},        // settings that were changed here
    base: {},          // those that a running server has
    answer: null,      // the last whole answer
    card: null,        // of the server that is planned from
    moved: false,      // the GPU was picked by hand
  };

  function controlsOf(engine) {
    return engines.has(engine) ? engines.get(engine).controls : [];
  }
  function valueOf(name) {
    return name in state.turned ? state.turned[name] : (state.base[name] ?? "");
  }

  function fillSources() {
    const select = byId("source");
    const chosen = state.source;
    select.replaceChildren();
    state.sources = [];
    const groups = [
      ["Running servers", choices.targets.map((name) => ({ kind: "target", name }))],
      ["Models of the configuration", choices.models.map((name) => ({ kind: "model", name }))],
      ["Opened here", state.file ? [state.file] : []],
    ];
    for (const [label, sources] of groups) {
      if (!sources.length) continue;
      const group = make("optgroup", { label });
      for (const source of sources) {
        const same = chosen && chosen.kind === source.kind && chosen.name === source.name;
        group.append(option(String(state.sources.length), source.name, Boolean(same)));
        state.sources.push(source);
      }
      select.append(group);
    }
    if (!state.sources.length) select.append(option("", "nothing yet: open a config.json"));
    select.disabled = !state.sources.length;
  }

  function fillGpus() {
    const select = byId("gpu");
    const before = state.moved ? select.value : null;
    select.replaceChildren();
    const own = make("optgroup", { label: "Here" });
    if (state.source && state.source.kind === "target") own.append(option("target", "the server's own"));
    if (choices.machine) own.append(option("machine", "this machine's"));
    if (own.children.length) select.append(own);
    const table = make("optgroup", { label: "Known cards" });
    for (const gpu of choices.gpus) table.append(option(`name:${gpu.name}`, gpu.name));
    select.append(table);
    const other = make("optgroup", { label: "Other" });
    other.append(option("described", "described below"), option("", "none: sizes only"));
    select.append(other);
    const wanted = [before, own.children.length ? own.children[0].value : null, "name:H100 SXM"].find(
      (value) => value !== null && Array.from(select.options).some((each) => each.value === value));
    select.value = wanted ?? "";
    sayGpu();
  }

  // What is known of the chosen card stands below the list, which is too narrow for it.
  function sayGpu() {
    const value = byId("gpu").value;
    const known = choices.gpus.find((gpu) => `name:${gpu.name}` === value);
    const said = known ? `${(known.memory_bytes / 2 ** 30).toFixed(0)} GiB, ${(known.bandwidth_bytes_per_second / 1e12).toFixed(2)} TB/s`
      : value === "target" ? state.card ?? "" : value === "machine" ? choices.machine : "";
    byId("gpu-said").textContent = said;
    show("gpu-said", said !== "");
    show("described", value === "described");
  }

  function chosenGpu() {
    const value = byId("gpu").value;
    if (value === "") return null;
    if (value === "target") return { target: true };
    if (value === "machine") return { machine: true };
    if (value === "described") {
      return { memory: byId("gpu-memory").value, terabytes_per_second: Number(byId("gpu-bandwidth").value) || 0 };
    }
    return { name: value.slice("name:".length) };
  }

  // --- controls

  const widgets = new Map();  // by setting: {refresh}
  let built = null;

  function turn(name, value) {
    if (value === (state.base[name] ?? "")) delete state.turned[name];
    else state.turned[name] = value;
    refreshControls();
    ask();
  }

  function buildControls(engine) {
    if (built === engine) return;
    built = engine;
    widgets.clear();
    const place = byId("settings");
    place.replaceChildren();
    for (const control of controlsOf(engine)) {
      const id = `set-${control.name}`;
      const undo = make("button", { type: "button", class: "undo", hidden: true, onclick: () => { delete state.turned[control.name]; refreshControls(); ask(); } });
      const head = make("div", { class: "head" }, make("label", { for: id, title: control.flag }, control.title), undo);
      const box = make("div", { class: "control" }, head);
      const widget = WIDGETS[control.role](control, id);
      box.append(...widget.parts);
      place.append(box);
      widgets.set(control.name, { ...widget, undo, box });
    }
    if (!widgets.size) place.append(make("p", { class: "small soft" }, "None can be turned for this engine."));
  }

  function contextWidget(control, id) {
    const number = make("input", { id, type: "number", min: 1, step: 1, inputmode: "numeric" });
    const range = make("input", { type: "range", min: 0, step: 1, "aria-label": `${control.title}, in steps`, "data-setting": control.name });
    let steps = [];
    range.addEventListener("input", () => { if (steps.length) turn(control.name, String(steps[Number(range.value)])); });
    number.addEventListener("change", () => turn(control.name, number.value.trim()));
    return {
      parts: [make("div", { class: "with-number" }, range, number)],
      refresh() {
        const answer = state.answer && state.answer.answer;
        steps = answer ? answer.curve.map((point) => point.context_tokens) : [];
        const stated = Number(valueOf(control.name));
        const now = stated > 0 ? stated : answer ? answer.context_tokens : 0;
        range.max = String(Math.max(0, steps.length - 1));
        range.disabled = !steps.length;
        let nearest = 0;
        steps.forEach((step, index) => { if (Math.abs(Math.log(step / now)) < Math.abs(Math.log(steps[nearest] / now))) nearest = index; });
        range.value = String(nearest);
        range.setAttribute("aria-valuetext", `${count(now)} tokens`);
        if (document.activeElement !== number) number.value = now ? String(now) : "";
        if (answer) number.max = String(answer.limits.longest_context);
      },
    };
  }

  function choiceWidget(control, id, unset) {
    const select = make("select", { id });
    select.addEventListener("change", () => turn(control.name, select.value));
    return {
      parts: [select],
      refresh() {
        const now = valueOf(control.name);
        const offered = control.choices.includes(now) || now === "" || now === "auto" ? control.choices : [now, ...control.choices];
        const stored = control.role === "quantization" && state.answer ? state.answer.answer.model.quantization : null;
        select.disabled = Boolean(stored);
        fill(select, [["", stored ? `stored as ${stored} already` : unset], ...offered.map((choice) => [choice, choice])], now === "auto" ? "" : now);
      },
    };
  }

  function tensorWidget(control, id) {
    const select = make("select", { id });
    select.addEventListener("change", () => turn(control.name, select.value));
    return {
      parts: [select],
      refresh() {
        const answer = state.answer && state.answer.answer;
        const sizes = new Set(answer ? answer.limits.tensor_parallel_sizes : [1]);
        const now = Number(valueOf(control.name)) || 1;
        sizes.add(now);
        const sorted = Array.from(sizes).sort((a, b) => a - b);
        fill(select, sorted.map((size) => [String(size), size === 1 ? "1 GPU" : `${size} GPUs`]), String(now));
      },
    };
  }

  function sequencesWidget(control, id) {
    const select = make("select", { id });
    select.addEventListener("change", () => turn(control.name, select.value));
    const usual = [];
    for (let size = control.least; size <= control.most; size *= 2) usual.push(size);
    return {
      parts: [select],
      refresh() {
        const now = valueOf(control.name);
        const sizes = new Set(usual);
        if (Number(now) > 0) sizes.add(Number(now));
        const sorted = Array.from(sizes).sort((a, b) => a - b);
        fill(select, [["", "the engine's default"], ...sorted.map((size) => [String(size), count(size)])], Number(now) > 0 ? String(Number(now)) : "");
      },
    };
  }

  function ratioWidget(control, id) {
    const range = make("input", { type: "range", min: control.least, max: control.most, step: 0.01, "aria-label": `${control.title}, in steps`, "data-setting": control.name });
    const number = make("input", { id, type: "number", min: 0.01, max: 1, step: 0.01, placeholder: "default" });
    range.addEventListener("input", () => turn(control.name, String(Number(range.value))));
    number.addEventListener("change", () => turn(control.name, number.value.trim()));
    return {
      parts: [make("div", { class: "with-number" }, range, number)],
      refresh() {
        const now = valueOf(control.name);
        range.value = now || "0.9";
        range.setAttribute("aria-valuetext", now || "the engine's default");
        if (document.activeElement !== number) number.value = now;
      },
    };
  }

  const WIDGETS = {
    context: contextWidget,
    kv_dtype: (control, id) => choiceWidget(control, id, "the engine's default"),
    quantization: (control, id) => choiceWidget(control, id, "as the model is stored"),
    tensor_parallel: tensorWidget,
    sequences: sequencesWidget,
    memory_ratio: ratioWidget,
  };

  function refreshControls() {
    for (const [name, widget] of widgets) {
      widget.refresh();
      const changed = name in state.turned;
      widget.undo.hidden = !changed;
      const before = state.base[name];
      widget.undo.textContent = before ? `back to ${before}` : "back to the default";
    }
    show("reset", Object.keys(state.turned).length > 1);
  }

  // --- asking

  let busy = false, again = false, timer = 0, retries = 0;

  function ask(soon = 30) {
    clearTimeout(timer);
    timer = setTimeout(run, soon);
  }

  function question() {
    const source = state.source;
    const asked = { page, settings: state.turned, gpu: chosenGpu() };
    if (source.kind === "config") asked.source = { config: source.text };
    else asked.source = { [source.kind]: source.name };
    if (source.kind !== "target") {
      asked.engine = byId("engine").value;
      if (byId("version").value.trim()) asked.engine_version = byId("version").value.trim();
    }
    return asked;
  }

  async function run() {
    if (!state.source) return;
    if (busy) { again = true; return; }
    busy = true; again = false;
    const source = state.source;
    const waiting = setTimeout(() => document.querySelector(".results").setAttribute("aria-busy", "true"), 300);
    try {
      const response = await fetch("plan/predict", {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question()), cache: "no-store",
      });
      const said = await response.json();
      if (source !== state.source) again = true;
      else if (response.ok) { retries = 0; took(said); }
      else if (response.status === 503 && retries < 5) {
        retries += 1;
        trouble(said.error);
        ask(1000 * (Number(response.headers.get("Retry-After")) || 2));
      } else if (response.status !== 409) { retries = 0; trouble(said.error); }
    } catch {
      if (source === state.source) trouble("The exporter does not answer. Is it still running?");
    } finally {
      clearTimeout(waiting);
      document.querySelector(".results").removeAttribute("aria-busy");
      busy = false;
      if (again) ask(0);
    }
  }

  function trouble(text) {
    const box = byId("error");
    const stale = !byId("shown").hidden;
    box.textContent = stale ? `${text} What is shown below is the last that could be predicted.` : text;
    box.hidden = false;
    show("waiting", false);
    byId("shown").classList.toggle("stale", stale);
    byId("said").textContent = "";
    if (state.source && state.source.kind !== "target") buildControls(byId("engine").value);
    refreshControls();
  }

  function took(said) {
    show("error", false);
    show("waiting", false);
    byId("shown").classList.remove("stale");
    state.answer = said;
    state.base = said.base;
    for (const [name, value] of Object.entries(state.turned)) if (value === (said.base[name] ?? "")) delete state.turned[name];
    buildControls(said.engine);
    refreshControls();
    render();
  }

  // --- showing an answer

  function verdictOf(answer) {
    const { prediction, room, headroom, gpu } = answer;
    const context = `one request of ${count(answer.context_tokens)} tokens`;
    if (!gpu) return { level: "", mark: "?", word: "Not known", text: "Whether it fits is not known without a GPU. Pick one." };
    const where = answer.gpus > 1 ? `each ${gpu.name}` : gpu.name;
    const request = prediction.kv_cache.bytes_for_one_full_request;
    if (prediction.fits === false && room.expected < 0) {
      const space = room.expected + request;
      return { level: "bad", mark: "✘", word: "Does not fit", text: space > 0
        ? `${capital(context)} takes ${bytes(request)} of KV cache; beside all else ${where} has ${bytes(space)} for it.`
        : `Without any KV cache ${where} is too small by ${bytes(-space)} already.` };
    }
    if (prediction.fits === false && headroom.expected < 0) {
      return { level: "bad", mark: "✘", word: "Does not fit",
        text: `All together takes ${bytes(prediction.per_gpu.total.expected)}, which is ${bytes(-headroom.expected)} more than ${where} has.` };
    }
    const concurrency = prediction.kv_cache.max_concurrency;
    const cure = "Give the engine more of the memory, or shorten the context.";
    if (concurrency !== null && concurrency < 1) {
      return { level: "bad", mark: "✘", word: "Does not start so",
        text: `The card is large enough, but the KV cache pool that these settings leave holds only ${requests(concurrency)} of ${context}. ${cure}` };
    }
    if (prediction.fits === false) {
      return { level: "warn", mark: "!", word: "May not fit",
        text: `As expected it fits on ${where}; by the high bounds ${bytes(Math.max(-room.low, room.low < 0 ? 0 : -headroom.low))} are missing.` };
    }
    if (answer.starts === false) {
      return { level: "warn", mark: "!", word: "May not start",
        text: `${capital(where)} is large enough, but at worst the KV cache pool that these settings leave holds ${answer.longest_start_tokens ? `a request of ${count(answer.longest_start_tokens)} tokens` : "no request at all"}. ${cure}` };
    }
    return { level: "good", mark: "✔", word: "Fits", text: `${where} holds all of it and ${context}, also by the high bounds.` };
  }

  // The pool at its bounds, as shares of the expected one; null where it has none.
  function sharesOf(cache) {
    if (!cache.num_blocks || cache.num_blocks_low === cache.num_blocks_high) return null;
    return { low: cache.num_blocks_low / cache.num_blocks, high: cache.num_blocks_high / cache.num_blocks };
  }

  function figure(name, value, more) {
    return make("div", {}, make("dt", {}, name), make("dd", {}, make("strong", {}, value), make("span", {}, more ?? "")));
  }

  function render() {
    const said = state.answer, answer = said.answer, prediction = answer.prediction, cache = prediction.kv_cache;
    show("shown", true);
    const verdict = verdictOf(answer);
    byId("verdict").className = `card ${verdict.level}`;
    byId("mark").textContent = verdict.mark;
    byId("verdict-word").textContent = verdict.word;
    byId("verdict-text").textContent = verdict.text;
    const left = answer.headroom ? `${bytes(answer.headroom.expected)} headroom` : "no GPU";
    const held = cache.max_concurrency === null ? "" : ` · ${requests(cache.max_concurrency)} × ${tokens(answer.context_tokens)}`;
    byId("said").textContent = `${verdict.mark} ${verdict.word} · ${left}${held}`;
    renderAdvice(answer);
    const ceilings = prediction.throughput.decode_ceiling;
    const shares = sharesOf(cache);
    byId("figures").replaceChildren(
      figure("Headroom on a GPU", answer.headroom ? bytes(answer.headroom.expected) : "–",
        answer.headroom ? `${between(answer.headroom.low, answer.headroom.high)}, once the pool is full` : "needs a GPU"),
      figure("KV cache holds", cache.capacity_tokens === null ? "–" : `${count(cache.capacity_tokens)} tokens`,
        cache.num_blocks === null ? "" : `${count(cache.num_blocks)} blocks (${count(cache.num_blocks_low)} to ${count(cache.num_blocks_high)})`),
      figure("Requests of full length", requests(cache.max_concurrency),
        [shares ? `${requests(cache.max_concurrency * shares.low)} to ${requests(cache.max_concurrency * shares.high)}` : "", `at once, of ${count(answer.context_tokens)} tokens`].join(" ")),
      figure("One such request", bytes(cache.bytes_for_one_full_request), "of KV cache on each GPU"),
      figure("KV cache per token", bytes(cache.bytes_per_token), `${count(cache.bytes_per_token)} B on each GPU`),
      figure("Decode ceiling", ceilings.length ? `${count(ceilings[0].tokens_per_second)} tokens/s` : "–",
        ceilings.length ? `one request at ${count(ceilings[0].context_tokens)} tokens` : "needs the GPU's bandwidth"),
      figure("Parameters", `${(prediction.parameters / 1e9).toFixed(2)} billion`, `${answer.model.layers} layers, ${answer.model.quantization ?? answer.model.dtype ?? "no type stated"}`),
      figure("GPUs", String(answer.gpus), answer.gpu ? answer.gpu.name : "of no kind yet"),
    );
    renderParts(answer);
    renderCurveTable(answer);
    renderBeside(said);
    renderCeilings(ceilings, answer.context_tokens);
    renderAssumed(said);
    const simulated = Boolean(said.observed && said.observed.simulated);
    show("simulated", simulated);
    drawAll(answer);
    const title = state.source.kind === "target" ? engines.get(said.engine)?.title ?? said.engine : null;
    show("engine-said", title !== null);
    byId("engine-said").textContent = title === null ? "" : `${title} ${said.engine_version ?? ""}, with the settings it runs with`;
    if (state.source.kind === "target") state.card = said.card || "not known";
    sayGpu();
  }

  function renderAdvice(answer) {
    const { longest_fitting: longest, longest_context: most, is_whole: isWhole } = answer.limits;
    let text = "";
    const differs = longest !== null && longest !== contextSet(answer);
    if (!isWhole) text = "The limits took too long to work out; the curve is not whole.";
    else if (!answer.gpu) text = `The model takes up to ${count(most)} tokens.`;
    else if (longest === null) text = "No context length fits with these settings.";
    else if (longest >= most) text = `Every context length of the model fits, up to ${count(most)} tokens.`;
    else text = `The longest context that fits and starts, at worst too, is ${count(longest)} of the model's ${count(most)} tokens.`;
    byId("advice-text").textContent = text;
    show("take-longest", isWhole && differs && Boolean(answer.gpu));
    if (differs) byId("take-longest").textContent = `Take ${count(longest)}`;
  }

  // --- the memory of one GPU

  // Everything whose size is that of the window.
  function drawAll(answer) {
    const rank = answer.prediction.per_gpu;
    drawBar(byId("bar"), Object.entries(rank.components), rank.total, answer.gpu);
    const points = answer.curve.length > 1 ? answer.curve : [];
    drawRoom(byId("room-curve"), points.filter((point) => point.room), answer);
    drawConcurrency(byId("concurrency-curve"), points.filter((point) => point.concurrency > 0), answer);
  }

  function renderParts(answer) {
    const rank = answer.prediction.per_gpu;
    const parts = Object.entries(rank.components);
    const visible = answer.gpu ? answer.gpu.visible.expected : null;
    const reach = Math.max(...parts.map(([, part]) => part.high), 1) * 1.03;
    const rows = parts.map(([name, part]) => make("tr", { "data-component": name },
      make("th", { scope: "row" }, make("span", { class: `swatch ${name in NAMES ? name : ""}`, "aria-hidden": true }), NAMES[name] ?? name),
      make("td", { class: "expected" }, bytes(part.expected)),
      make("td", { class: "bounds" }, part.low === part.high ? "exact" : between(part.low, part.high)),
      rangeCell(part, reach, name),
      sourceCell(part.source)));
    const whole = rank.total;
    rows.push(make("tr", { class: "total", "data-component": "total" }, make("th", { scope: "row" }, "total"), make("td", { class: "expected" }, bytes(whole.expected)),
      make("td", { class: "bounds" }, between(whole.low, whole.high)), make("td", { class: "range" }), sourceCell(whole.source)));
    if (visible !== null) {
      const seen = answer.gpu.visible;
      rows.push(make("tr", { "data-component": "visible" }, make("th", { scope: "row" }, "the GPU shows"), make("td", { class: "expected" }, bytes(seen.expected)),
        make("td", { class: "bounds" }, seen.low === seen.high ? "exact" : between(seen.low, seen.high)), make("td", { class: "range" }),
        sourceCell(`${answer.gpu.name}: ${seen.source}`)));
    }
    for (const [name, part] of Object.entries(rank.host)) {
      rows.push(make("tr", {}, make("th", { scope: "row" }, `${name}, in host memory`), make("td", {}, bytes(part.expected)),
        make("td", {}, between(part.low, part.high)), make("td", { class: "range" }), sourceCell(part.source)));
    }
    byId("parts").tBodies[0].replaceChildren(...rows);
  }

  function sourceText(text) {
    return make("span", { class: "small soft" }, text);
  }
  function sourceCell(text) {
    if (text.length <= 60) return make("td", { class: "from" }, sourceText(text));
    const cut = text.slice(0, 56);
    const short = cut.slice(0, Math.max(cut.lastIndexOf(" "), 30));
    return make("td", { class: "from" }, make("details", {}, make("summary", {}, `${short} …`), make("p", {}, text)));
  }

  function rangeCell(part, reach, name) {
    const at = (size) => (100 * size) / reach;
    const svg = draw("svg", { class: "small", viewBox: "0 0 100 14", preserveAspectRatio: "none", "aria-hidden": "true" });
    svg.append(
      draw("rect", { class: `segment ${name}`, x: 0, y: 3, width: Math.max(0.5, at(part.expected)), height: 8 }),
      draw("path", { class: "whisker", "vector-effect": "non-scaling-stroke", d: `M${at(part.low)} 2V12M${at(part.low)} 7H${at(part.high)}M${at(part.high)} 2V12` }));
    return make("td", { class: "range", "aria-hidden": "true" }, svg);
  }

  function drawBar(place, parts, total, gpu) {
    const visible = gpu ? gpu.visible.expected : null;
    const full = Math.max(visible ?? 0, total.high);
    const width = Math.max(240, place.clientWidth || 640);
    const at = (size) => (size / (full * 1.03)) * width;
    const top = 24, tall = 44;
    const svg = draw("svg", { viewBox: `0 0 ${width} 108`, height: 108, role: "img" });
    const named = parts.map(([name, part]) => `${NAMES[name] ?? name} ${bytes(part.expected)}`).join(", ");
    svg.append(draw("title", {}, `${named}; total ${bytes(total.expected)}${visible === null ? "" : ` of ${bytes(visible)}`}`));
    if (visible !== null) svg.append(draw("rect", { class: "track", x: 0, y: top, width: at(visible), height: tall }));
    let from = 0;
    for (const [name, part] of parts) {
      const wide = at(part.expected);
      svg.append(draw("rect", { class: `segment ${name}`, x: at(from), y: top, width: Math.max(wide, 0.5), height: tall }));
      const label = NAMES[name] ?? name;
      if (wide > label.length * 7.2 + 10) {
        const tone = LIGHT_TEXT.has(name) ? "inside light" : "inside";
        svg.append(draw("text", { class: tone, x: at(from) + 6, y: top + 18 }, label));
        const size = bytes(part.expected);
        if (wide > size.length * 7.2 + 10) svg.append(draw("text", { class: tone, x: at(from) + 6, y: top + 35 }, size));
      }
      from += part.expected;
    }
    // What the whole may be, below the bar.
    const y = top + tall + 10;
    svg.append(draw("path", { class: "whisker", d: `M${at(total.low)} ${y - 5}V${y + 5}M${at(total.low)} ${y}H${at(total.high)}M${at(total.high)} ${y - 5}V${y + 5}` }),
      draw("circle", { class: "dot", cx: at(total.expected), cy: y, r: 4.5 }));
    const total_text = `total ${bytes(total.expected)}, from ${bytes(total.low)} to ${bytes(total.high)}`;
    anchored(svg, total_text, at(total.expected), y + 22, width);
    if (visible !== null) {
      svg.append(draw("line", { class: "card-edge", x1: at(visible), x2: at(visible), y1: top - 6, y2: top + tall + 4 }));
      anchored(svg, `${gpu.name}: ${bytes(visible)}`, at(visible), top - 10, width, "strong");
    }
    place.replaceChildren(svg);
  }

  // Text around a place, kept within the drawing.
  function anchored(svg, text, x, y, width, kind = "") {
    const half = text.length * 3.4;
    const anchor = x + half > width ? "end" : x - half < 0 ? "start" : "middle";
    svg.append(draw("text", { class: kind, x: anchor === "end" ? width : anchor === "start" ? 0 : x, y, "text-anchor": anchor }, text));
  }

  // --- by context length

  function renderCurveTable(answer) {
    const rows = answer.curve.map((point) => {
      const { room, headroom } = point;
      const row = make("tr", { class: point.context_tokens === contextSet(answer) ? "now" : undefined },
        make("th", { scope: "row" }, count(point.context_tokens)),
        make("td", {}, bytes(point.full_request_bytes)),
        make("td", {}, room ? bytes(room.expected) : "–"),
        make("td", {}, room ? between(room.low, room.high) : "–"),
        make("td", {}, headroom ? bytes(headroom.expected) : "–"),
        make("td", {}, requests(point.concurrency)),
        make("td", { class: point.fits ? "yes" : "no" }, point.fits === null ? "–" : point.fits ? "yes" : "no"));
      return row;
    });
    byId("curve-table").tBodies[0].replaceChildren(...rows);
    readOut(null);
  }

  function frame(place, height, points, low, high, toY, yTicks, yText, title) {
    const width = Math.max(260, place.clientWidth || 640);
    const left = 62, right = 14, top = 10, bottom = 30;
    const first = Math.log(points[0].context_tokens), last = Math.log(points.at(-1).context_tokens);
    const x = (length) => left + ((Math.log(length) - first) / (last - first || 1)) * (width - left - right);
    const y = (value) => top + (1 - (toY(value) - toY(low)) / (toY(high) - toY(low) || 1)) * (height - top - bottom);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
    svg.append(draw("title", {}, title));
    for (const tick of yTicks) {
      svg.append(draw("line", { class: "axis", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
        draw("text", { class: "soft", x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, yText(tick)));
    }
    const wanted = points.map((point) => point.context_tokens);
    const room = Math.floor((width - left - right) / 48);
    const doublings = wanted.filter((length) => Math.log2(length / wanted[0]) % 1 === 0);
    const each = Math.max(1, Math.ceil(doublings.length / room));
    doublings.filter((_, index) => index % each === 0).forEach((length) => {
      svg.append(draw("line", { class: "axis", x1: x(length), x2: x(length), y1: height - bottom, y2: height - bottom + 4 }),
        draw("text", { class: "soft", x: x(length), y: height - bottom + 17, "text-anchor": "middle" }, tokens(length)));
    });
    return { svg, x, y, width, left, right, top, bottom };
  }

  function niceTicks(low, high, wanted) {
    const rough = (high - low) / wanted;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    const ticks = [];
    for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) ticks.push(Math.abs(tick) < step * 1e-9 ? 0 : tick);
    return ticks;
  }

  const path = (points) => points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

  function empty(place, text) {
    place.replaceChildren(make("p", { class: "small soft" }, text));
  }

  function drawRoom(place, points, answer) {
    if (!points.length) { empty(place, answer.gpu ? "Not worked out." : "Needs a GPU."); return; }
    const gib = 2 ** 30;
    const low = Math.min(0, ...points.map((point) => Math.min(point.room.low, point.headroom.expected))) / gib;
    const high = Math.max(1, ...points.map((point) => Math.max(point.room.high, point.headroom.expected))) / gib;
    const spare = (high - low) * 0.04;
    const bottomAt = low < 0 ? low - spare : 0, topAt = high + spare;
    const title = `Memory left beside one request, by context length: ${points.map((point) => `${tokens(point.context_tokens)} ${bytes(point.room.expected)}`).join(", ")}`;
    const chart = frame(place, 230, points, bottomAt, topAt, (value) => value, niceTicks(bottomAt, topAt, 5), (tick) => `${String(tick).replace("-", "−")} GiB`, title);
    const { svg, x, y } = chart;
    if (low < 0) {
      svg.append(draw("rect", { class: "short", x: chart.left, y: y(0), width: chart.width - chart.left - chart.right, height: Math.max(0, y(bottomAt) - y(0)) }));
      anchored(svg, "does not fit", chart.left + 44, y(bottomAt) - 6, chart.width, "soft");
    }
    svg.append(draw("line", { class: low < 0 ? "zero" : "base", x1: chart.left, x2: chart.width - chart.right, y1: y(0), y2: y(0) }));
    const upper = points.map((point) => [x(point.context_tokens), y(point.room.high / gib)]);
    const lower = points.map((point) => [x(point.context_tokens), y(point.room.low / gib)]);
    svg.append(
      draw("path", { class: "band", d: `${path(upper)}L${path(lower.reverse()).slice(1)}Z` }),
      draw("path", { class: "line", d: path(points.map((point) => [x(point.context_tokens), y(point.room.expected / gib)])) }),
      draw("path", { class: "dashed", d: path(points.map((point) => [x(point.context_tokens), y(point.headroom.expected / gib)])) }));
    const longest = answer.limits.longest_fitting;
    if (longest !== null && longest < answer.limits.longest_context && longest >= points[0].context_tokens) {
      svg.append(draw("line", { class: "limit", x1: x(longest), x2: x(longest), y1: chart.top, y2: y(bottomAt) }));
      anchored(svg, `safe up to ${count(longest)}`, x(longest), chart.top + 4, chart.width, "strong");
    }
    here(chart, points, answer, answer.room ? answer.room.expected / gib : null, answer.room ? bytes(answer.room.expected) : "", bottomAt, topAt);
    place.replaceChildren(svg);
  }

  function drawConcurrency(place, points, answer) {
    if (points.length < 2) { empty(place, answer.gpu ? "The KV cache pool holds none." : "Needs a GPU, or a size of the pool."); return; }
    const shares = sharesOf(answer.prediction.kv_cache);
    const bounds = shares && shares.low > 0 ? shares : { low: 1, high: 1 };
    const values = points.map((point) => point.concurrency);
    const lowest = Math.floor(Math.log10(Math.min(...values.map((value) => value * bounds.low), 1)));
    const highest = Math.ceil(Math.log10(Math.max(...values.map((value) => value * bounds.high), 1.01)));
    const ticks = [];
    for (let power = lowest; power <= highest; power += 1) ticks.push(10 ** power);
    const title = `Requests at once, by context length: ${points.map((point) => `${tokens(point.context_tokens)} ${requests(point.concurrency)}`).join(", ")}`;
    const chart = frame(place, 190, points, ticks[0], ticks.at(-1), Math.log10, ticks, (tick) => (tick >= 1 ? count(tick) : String(Number(tick.toPrecision(1)))), title);
    const { svg, x, y } = chart;
    if (lowest < 0) svg.append(draw("rect", { class: "short", x: chart.left, y: y(1), width: chart.width - chart.left - chart.right, height: Math.max(0, y(ticks[0]) - y(1)) }));
    svg.append(draw("line", { class: lowest < 0 ? "zero" : "base", x1: chart.left, x2: chart.width - chart.right, y1: y(1), y2: y(1) }),
      draw("path", { class: "band", d: `${path(points.map((point) => [x(point.context_tokens), y(point.concurrency * bounds.high)]))}L${
        path(points.map((point) => [x(point.context_tokens), y(point.concurrency * bounds.low)]).reverse()).slice(1)}Z` }),
      draw("path", { class: "line", d: path(points.map((point) => [x(point.context_tokens), y(point.concurrency)])) }));
    const now = answer.prediction.kv_cache.max_concurrency;
    here(chart, points, answer, now > 0 ? now : null, requests(now), ticks[0], ticks.at(-1));
    place.replaceChildren(svg);
  }

  // The context length that is set, and the way to another one with a pointer.
  function here(chart, points, answer, value, text, bottomAt, topAt) {
    const { svg, x, y } = chart;
    const now = contextSet(answer);
    if (now >= points[0].context_tokens && now <= points.at(-1).context_tokens) {
      svg.append(draw("line", { class: "now", x1: x(now), x2: x(now), y1: y(topAt), y2: y(bottomAt) }));
      if (value !== null && value >= bottomAt && value <= topAt) {
        svg.append(draw("circle", { class: "dot", cx: x(now), cy: y(value), r: 5 }));
        const side = x(now) > chart.width / 2 ? -1 : 1;
        svg.append(draw("text", { class: "strong", x: x(now) + 9 * side, y: Math.max(y(value) - 9, chart.top + 12), "text-anchor": side < 0 ? "end" : "start" }, text));
      }
    }
    const hit = draw("rect", { class: "hit", x: chart.left, y: 0, width: chart.width - chart.left - chart.right, height: y(bottomAt) });
    const nearest = (event) => {
      const box = svg.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * chart.width;
      return points.reduce((best, point) => (Math.abs(x(point.context_tokens) - at) < Math.abs(x(best.context_tokens) - at) ? point : best));
    };
    hit.addEventListener("pointermove", (event) => readOut(nearest(event)));
    hit.addEventListener("pointerleave", () => readOut(null));
    hit.addEventListener("click", (event) => {
      const control = controlsOf(state.answer.engine).find((each) => each.role === "context");
      if (control) turn(control.name, String(nearest(event).context_tokens));
    });
    svg.append(hit);
  }

  // The context as it is set, which llama.cpp divides among its slots.
  function contextSet(answer) {
    const control = controlsOf(state.answer.engine).find((each) => each.role === "context");
    return (control && Number(state.answer.settings[control.name])) || answer.context_tokens;
  }

  function readOut(point) {
    byId("read-out").textContent = !point
      ? "The upright line is the context length that is set; click in a curve to set another."
      : `${count(point.context_tokens)} tokens: one request takes ${bytes(point.full_request_bytes)}` +
        `${point.room ? `, ${bytes(point.room.expected)} are left beside it` : ""}; ${requests(point.concurrency)} at once.`;
  }

  // --- the rest

  function renderBeside(said) {
    const observed = said.observed;
    show("beside", Boolean(observed));
    if (!observed) return;
    byId("beside-table").hidden = !said.unchanged;
    byId("beside-said").textContent = !said.unchanged
      ? "What is observed holds for the settings the server runs with, on its own GPU. Undo the changes to compare."
      : [said.card || !said.answer.gpu ? "" : `The server's own GPU is not known: predicted for ${said.answer.gpu.name}.`,
        observed.ranks > 1 ? `Observed: the rank with the least of ${observed.ranks} data-parallel ranks.` : ""].join(" ");
    if (!said.unchanged) return;
    const { kv_cache: cache, per_gpu: rank } = said.answer.prediction;
    const lines = [
      ["KV cache blocks", cache.num_blocks, cache.num_blocks_low, cache.num_blocks_high, observed.num_blocks, count],
      ["KV cache capacity, tokens", cache.capacity_tokens, null, null, observed.capacity_tokens, count],
      ["Requests of full length", cache.max_concurrency, null, null, observed.max_concurrency, requests],
      ...Object.entries(rank.components).filter(([name]) => name in observed.components)
        .map(([name, part]) => [NAMES[name] ?? name, part.expected, part.low, part.high, observed.components[name], bytes]),
    ];
    byId("beside-table").tBodies[0].replaceChildren(...lines.map(([name, expected, low, high, seen, text]) => make("tr", {},
      make("th", { scope: "row" }, name),
      make("td", {}, expected === null ? "–" : text(expected)),
      make("td", {}, low === null ? "" : `${text(low)} to ${text(high)}`),
      make("td", {}, seen === null ? "not stated" : text(seen)),
      make("td", {}, seen === null || !expected ? "" : percent((seen - expected) / expected)))));
  }

  function renderCeilings(ceilings, context) {
    const table = byId("ceiling-table");
    table.hidden = !ceilings.length;
    show("no-ceiling", !ceilings.length);
    if (!ceilings.length) return;
    const lengths = Array.from(new Set(ceilings.map((each) => each.context_tokens)));
    const batches = Array.from(new Set(ceilings.map((each) => each.batch)));
    table.tHead.replaceChildren(make("tr", {}, make("th", { scope: "col" }, "requests at once"),
      ...lengths.map((length) => make("th", { scope: "col" }, `at ${count(length)} tokens each`))));
    table.tBodies[0].replaceChildren(...batches.map((batch) => make("tr", {}, make("th", { scope: "row" }, count(batch)),
      ...lengths.map((length) => {
        const found = ceilings.find((each) => each.batch === batch && each.context_tokens === length);
        return make("td", { class: length === context ? "now" : undefined }, found ? count(found.tokens_per_second) : "–");
      }))));
  }

  function renderAssumed(said) {
    const prediction = said.answer.prediction;
    const lines = [...said.notes, ...prediction.assumptions];
    lines.push(prediction.calibrated
      ? "Activations, CUDA graphs and runtime were calibrated on such a server."
      : "Activations, CUDA graphs and runtime come from a table, not from this server; brimline calibrate measures them.");
    byId("assumed").replaceChildren(...lines.map((line) => make("li", {}, line)));
    const own = new Set(controlsOf(said.engine).map((control) => control.name));
    const kept = Object.entries(said.base).filter(([name]) => !own.has(name));
    byId("kept").textContent = kept.length ? `Kept as the server runs: ${kept.map(([name, value]) => `${name} ${value}`).join(", ")}.` : "";
  }

  // --- what a person does

  function pick(source) {
    state.source = source;
    state.turned = {};
    state.base = {};
    state.moved = false;
    state.answer = null;
    state.card = null;
    for (const id of ["shown", "error", "engine-said", "reset"]) show(id, false);
    show("waiting", true);
    show("engine-row", source.kind !== "target");
    byId("said").textContent = "";
    built = null;
    byId("settings").replaceChildren();
    fillSources();
    fillGpus();
    ask(0);
  }

  async function open(file) {
    if (!file) return;
    if (file.size > MAX_FILE_BYTES) {
      trouble(`${file.name} has ${bytes(file.size)}; a model's config.json has 4 MiB at most.`);
      return;
    }
    state.file = { kind: "config", name: file.name, text: await file.text() };
    pick(state.file);
  }

  function start() {
    byId("engine").replaceChildren(...choices.engines.map((engine) => option(engine.name, engine.title)));
    byId("form").addEventListener("submit", (event) => event.preventDefault());
    byId("source").addEventListener("change", () => pick(state.sources[Number(byId("source").value)]));
    byId("engine").addEventListener("change", () => { state.turned = {}; ask(); });
    byId("version").addEventListener("change", () => ask());
    byId("gpu").addEventListener("change", () => { state.moved = true; sayGpu(); ask(); });
    for (const id of ["gpu-memory", "gpu-bandwidth"]) byId(id).addEventListener("change", () => ask());
    byId("reset").addEventListener("click", () => { state.turned = {}; refreshControls(); ask(); });
    byId("take-longest").addEventListener("click", () => {
      const control = controlsOf(state.answer.engine).find((each) => each.role === "context");
      if (control) turn(control.name, String(state.answer.answer.limits.longest_fitting));
    });
    byId("file").addEventListener("change", () => { open(byId("file").files[0]); byId("file").value = ""; });
    addEventListener("dragover", (event) => { event.preventDefault(); show("drop-cover", true); });
    addEventListener("dragleave", (event) => { if (!event.relatedTarget) show("drop-cover", false); });
    addEventListener("drop", (event) => { event.preventDefault(); show("drop-cover", false); open(event.dataTransfer.files[0]); });
    let width = 0;
    new ResizeObserver(() => {
      const now = byId("bar").clientWidth;
      if (now && now !== width) { width = now; requestAnimationFrame(() => { if (state.answer) drawAll(state.answer.answer); }); }
    }).observe(document.querySelector(".results"));
    fillSources();
    fillGpus();
    if (state.sources.length) pick(state.sources[0]);
    else trouble("Nothing to plan with yet: the configuration names no target and no model. Open a model's config.json.");
  }
  start();
})();
