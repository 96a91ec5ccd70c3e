// HiRes Guidance: draws what a run will do. All numbers come from the server (lib_hires/run/drawing.py) with each
// change, in the attributes of an element `.hires-guidance`; only the seconds are learnt here, from this browser's runs.
"use strict";

const hiresGuidance = (() => {
    const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
    const area = (size) => size[0] * size[1];

    // ---- seconds, learnt from the runs of this browser ---------------------------------------
    const STORE = "hires-guidance-runs", KEPT = 20;
    function measuredRuns() { // {model: [[pixels, seconds], ...]}
        try { return JSON.parse(localStorage.getItem(STORE)) || {}; } catch { return {}; } // off, or something else
    }

    function withRun(runs, model, pixels, seconds) {
        return {...runs, [model]: [...(runs[model] || []), [pixels, seconds]].slice(-KEPT)};
    }

    function secondsFor(pixels, runs) { // on the line through the runs, by least squares
        const [x, y] = [0, 1].map((column) => sum(runs.map((run) => run[column])) / runs.length);
        const spread = sum(runs.map((run) => (run[0] - x) ** 2));
        const slope = spread && sum(runs.map((run) => (run[0] - x) * (run[1] - y))) / spread;
        return slope > 0 && y > slope * x ? y + slope * (pixels - x) : y * pixels / x;
    }

    function secondsIn(text) { // as the pages write a run's time; undefined where there is none
        const [, minutes = 0, seconds] = /(?:(\d+) min\. )?([\d.]+) sec/.exec(text) || [];
        return seconds && 60 * minutes + Number(seconds);
    }

    // ---- words -------------------------------------------------------------------------------
    const brief = (number) => String(Number(number.toPrecision(number < 100 ? 2 : 3)));
    const escaped = (text) => String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
    const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
    const shown = (size) => `${size[1]}x${size[0]}`; // width first, as users write it

    function bytes(number) {
        const kibibytes = number / 1024;
        return kibibytes < 1000 ? `${brief(kibibytes)} KiB` : `${brief(kibibytes / 1024)} MiB`;
    }

    function time({pixels, plain_pixels: plain}, runs) {
        if (!runs.length) return "seconds are known after the first run in this browser";
        const [ours, theirs] = [pixels, plain].map((work) => secondsFor(work, runs));
        const times = theirs > 0 ? `, ${brief(ours / theirs)} times the plain run's` : "";
        return `about ${brief(ours)} s${times} (from ${count(runs.length, "run")} in this browser)`;
    }

    function facts(plan, runs) {
        const {edge, passes, latent_bytes: largest, notes} = plan;
        const end = edge && `guidance ends at timestep ${brief(edge.timestep)}, ` +
            `after step ${edge.step} of ${passes[0].weights.length}`;
        return [time(plan, runs), `largest latent: ${bytes(largest)}`, end, ...notes].filter(Boolean);
    }

    // ---- the drawing -------------------------------------------------------------------------
    const HEIGHT = 210, TOP = 8, FLOOR = 100, BASE = 158, LEFT = 30, LABELLED = 70; // in pixels
    const path = (name, d) => `<path class="hires-guidance-${name}" d="${d}"/>`;
    const label = (x, y, words) => `<text x="${x}" y="${y}">${escaped(words)}</text>`;
    const steps = (x0, step, shares) => `M${x0} ${FLOOR}` + // a line that is level within each step
        shares.map((share, i) => `V${FLOOR - share * (FLOOR - TOP)}H${x0 + (i + 1) * step}`).join("");

    function labels(part, x0) {
        const from = part.strength < 1 ? `strength ${brief(part.strength)}` : "";
        const made = part.weights.length, whole = part.whole_steps; // 0 where the pass is finished
        const taken = whole ? `${made} of ${count(whole, "step")}` : count(made, "step");
        const frames = part.frames > 1 ? `, ${part.frames} frames` : "";
        const lines = [part.name, shown(part.size) + frames, taken, from];
        return lines.map((words, i) => label(x0 + 2, BASE + 12 * (i + 1), words)).join("");
    }

    function drawnPass(part, x0, width, {top, largest, gamma}) {
        const step = width / part.weights.length, high = Math.sqrt(area(part.size) / largest) * (BASE - FLOOR - 12);
        const mark = (i) => path("evaluation", `M${x0 + (i + 0.5) * step} ${FLOOR + 2}v6`);
        return `<rect x="${x0}" y="${BASE - high}" width="${width - 2}" height="${high}"/>` +
            (part.native ? path("weight", steps(x0, step, part.weights.map((weight) => weight / top))) : "") +
            (part.gammas.some(Boolean) ? path("mixing", steps(x0, step, part.gammas.map((g) => g / gamma))) : "") +
            part.evaluated.map((evaluated, i) => (evaluated ? mark(i) : "")).join("") +
            (width < LABELLED ? "" : labels(part, x0));
    }

    function widthsOf(passes, width) { // by their steps, but wide enough to be read
        const all = sum(passes.map((part) => part.weights.length));
        const shares = passes.map((part) => Math.max(part.weights.length / all, 0.14));
        return shares.map((share) => share / sum(shares) * (width - LEFT - 2));
    }

    function drawn({passes, edge, theta, gamma}, width) {
        const widths = widthsOf(passes, width), top = Math.max(1, theta);
        const scale = {top, gamma, largest: Math.max(...passes.map((part) => area(part.size)))};
        const parts = passes.map((part, i) => drawnPass(part, LEFT + sum(widths.slice(0, i)), widths[i], scale));
        const end = edge && LEFT + widths[0] * edge.step / passes[0].weights.length;
        return `<svg role="img" width="${width}" height="${HEIGHT}" viewBox="0 0 ${width} ${HEIGHT}"` +
            ` aria-label="${escaped(passes.map((part) => part.message).join("; "))}">` +
            path("axis", `M${LEFT} ${TOP}V${FLOOR}H${width - 2}`) + label(2, TOP + 6, brief(top)) + label(2, FLOOR, "0") +
            parts.join("") + (edge ? path("edge", `M${end} ${TOP}V${FLOOR}`) : "") + "</svg>";
    }

    function legend({passes, gamma, native_evaluations: evaluations}) {
        const clip = passes.find((part) => part.native && part.frames > 1);
        const frames = clip ? ` of ${count(clip.native_frames, "frame")}` : "";
        const key = (name, words) => `<li class="hires-guidance-key-${name}">${words}</li>`;
        const guided = key("weight", "guidance w<sub>t</sub>") +
            key("evaluation", count(evaluations, "evaluation") + ` at the native size${frames}`);
        const mixed = key("mixing", `mixing γ<sub>t</sub>, at most ${brief(gamma)}`);
        return `<ul class="hires-guidance-legend">${passes.some((part) => part.native) ? guided : ""}` +
            `${passes.some((part) => part.gammas.some(Boolean)) ? mixed : ""}</ul>`;
    }

    // The element's content. plan: of lib_hires/run/drawing.py; runs: [[pixels, seconds], ...]; width in pixels.
    function markup(plan, runs, width) {
        const lines = facts(plan, runs).map((words) => `<li>${escaped(words)}</li>`).join("");
        return `${drawn(plan, width)}${legend(plan)}<ul class="hires-guidance-facts">${lines}</ul>`;
    }

    // ---- following the page ------------------------------------------------------------------
    const known = new WeakMap(); // element to its plan, and to what it shows
    let pending = null; // the run that was started here
    const SETTLED = 1000; // milliseconds after which the plan includes the last change before a run

    function drawings() {
        return [...document.querySelectorAll(".hires-guidance[data-plan]")].map((element) => {
            const {page, plan} = element.dataset, text = page + plan;
            if (known.get(element)?.text !== text) {
                known.set(element, {element, text, page: JSON.parse(page), plan: JSON.parse(plan)});
            }
            return known.get(element);
        });
    }

    const measured = (id) => document.querySelector(`#${CSS.escape(id)} .measurement`);

    function noteStart(event) {
        const hit = (ids) => ids.split(" ").some((id) => event.target.closest(`#${CSS.escape(id)}`));
        for (const {page} of drawings()) {
            if (hit(page.stop)) pending = null;
            if (!hit(page.generate)) continue;
            const run = pending = {page, before: measured(page.time)};
            setTimeout(() => notePlan(run), SETTLED);
        }
    }

    function notePlan(run) { // what the run does: later changes are about the next one
        const found = drawings().find(({page}) => page.generate === run.page.generate);
        if (!("plan" in run)) Object.assign(run, {plan: found?.plan, model: found?.page.model});
    }

    function noteEnd() {
        const element = pending && measured(pending.page.time);
        if (!element || element === pending.before) return;
        const run = pending, seconds = secondsIn(element.textContent);
        pending = null;
        notePlan(run);
        if (!seconds || !run.plan) return;
        const runs = withRun(measuredRuns(), run.model, run.plan.pixels, seconds);
        try { localStorage.setItem(STORE, JSON.stringify(runs)); } catch { /* storage is off or full */ }
    }

    function update() {
        noteEnd();
        for (const drawing of drawings()) {
            const {element, page, plan} = drawing, runs = measuredRuns()[page.model] || [];
            const width = Math.min(element.parentElement.clientWidth, 640);
            const state = JSON.stringify([drawing.text, runs, width]);
            if (state === drawing.state || (plan && !width)) continue; // no width: in a closed tab
            drawing.state = state;
            element.innerHTML = plan ? markup(plan, runs, width) : "";
        }
    }

    if (typeof document !== "undefined") {
        new MutationObserver(update).observe(document, {childList: true, subtree: true});
        document.addEventListener("click", noteStart, true);
        setInterval(update, 400); // another width of the page, an opened accordion, another tab's runs
    }

    return {markup, secondsFor, secondsIn, withRun};
})();

if (typeof module !== "undefined") module.exports = hiresGuidance;
