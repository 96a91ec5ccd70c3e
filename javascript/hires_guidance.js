// HiRes Guidance: a live drawing of what a run will do, beside the controls that it follows.
// An element `.hires-guidance` brings its facts along (lib_hires/run/drawing.py), and all else is read from the page's own
// inputs. `tables` is the engine's plan once more; tests/drawing_tables.json holds both to the same numbers.
"use strict";

const hiresGuidance = (() => {
    // ---- numbers -----------------------------------------------------------------------------
    const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
    const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
    const range = (count) => Array.from({length: count}, (_, i) => i);
    const area = (size) => size[0] * size[1];
    const shown = (size) => `${size[1]}x${size[0]}`;
    const snap = (length, multiple) => Math.max(1, Math.floor(length / multiple + 0.5)) * multiple;
    const roundEven = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x)); // as Python rounds
    function sizeOfArea(pixels, aspect, multiple) {
        const side = (x) => Math.ceil(Math.round(Math.sqrt(x) * 1e6) / 1e6);
        return [snap(side(pixels * aspect), multiple), snap(side(pixels / aspect), multiple)];
    }

    function interpolate(at, known, values) {
        const after = known.findIndex((x) => x > at);
        const high = Math.max(1, after < 0 ? known.length - 1 : after), low = high - 1;
        return values[low] + clamp((at - known[low]) / (known[high] - known[low]), 0, 1) * (values[high] - values[low]);
    }

    // ---- schedules ---------------------------------------------------------------------------
    function noiseLevels({sigmas}) {
        const logs = sigmas.map(Math.log), steps = range(sigmas.length);
        return {sigmas, count: sigmas.length, lowest: sigmas[0], highest: sigmas.at(-1),
            sigmaAt: (timestep) => Math.exp(interpolate(timestep, steps, logs)),
            timestepOf: (sigma) => interpolate(Math.log(sigma), logs, steps)};
    }

    // `count` values of f, evenly from one end's to the other's, brought back by f's inverse
    const even = (count, f, inverse, {highest, lowest}) =>
        range(count).map((i) => inverse(f(highest) + (f(lowest) - f(highest)) * i / Math.max(1, count - 1)));
    const uniform = (n, levels) => [...even(n, levels.timestepOf, levels.sigmaAt, levels), 0];
    const exponential = (n, levels) => [...even(n, Math.log, Math.exp, levels), 0];
    const stride = (n, {count}) => Math.max(1, Math.floor(count / n));
    const schedules = {
        "Karras": (n, levels) => [...even(n, (x) => x ** (1 / 7), (x) => x ** 7, levels), 0],
        "Exponential": exponential, "Polyexponential": exponential, // the hosts' rho is 1
        "Uniform": uniform, "Normal": uniform,
        "SGM Uniform": (n, levels) => [...even(n + 1, levels.timestepOf, levels.sigmaAt, levels).slice(0, -1), 0],
        "Simple": (n, {sigmas, count}) => [...range(n).map((i) => sigmas[count - 1 - Math.floor(i * (count / n))]), 0],
        "DDIM": (n, levels) => [...levels.sigmas.filter((_, i) => i && (i - 1) % stride(n, levels) === 0).reverse(), 0],
        "KL Optimal": (n, levels) => even(n + 1, Math.atan, Math.tan, levels),
    };

    function scheduleTimes(run, sampler, levels) {
        if (sampler.timesteps) {
            const rising = range(levels.count).filter((t) => t % stride(run.steps, levels) === 0);
            const times = rising.map((t) => Math.min(t + 1, levels.count - 1)).reverse();
            return sampler.ends_at_zero ? [...times, 0] : times;
        }
        const name = run.schedule === "Automatic" ? sampler.schedule : run.schedule;
        const sigmas = (schedules[name] || uniform)(run.steps + Number(sampler.drops_penultimate), levels);
        return sampler.drops_penultimate ? [...sigmas.slice(0, -2), sigmas.at(-1)] : sigmas;
    }

    function shiftedSchedule(sigmas, gain) {
        const logs = sigmas.slice(0, -1).map(Math.log), first = logs[0], last = logs.at(-1);
        const share = (x) => (logs.length === 1 ? 1 : (x - last) / (first - last));
        return [...logs.map((x) => Math.exp(x - share(x) * Math.log(gain))), sigmas.at(-1)];
    }

    function stageTimes({strength, timestep}, whole, timeAt) {
        if (timestep === null) return whole.slice(-Math.max(1, roundEven(strength * (whole.length - 1))) - 1);
        const start = timeAt(timestep);
        return [start, ...whole.filter((time) => time < 0.99 * start)];
    }

    // ---- the engine's plan -------------------------------------------------------------------
    const latentOf = (size, model) => size.map((side) => Math.floor(side / model.factor));
    function smallSize(large, scale, {model, smallest_scale: smallest}) { // in latent positions
        const native = latentOf(model.native, model), multiple = model.multiple / model.factor;
        if (Math.sqrt(area(large) / area(native)) < smallest) return null;
        const wanted = scale ? large.map((side) => snap(side / scale, multiple))
            : sizeOfArea(area(native), large[0] / large[1], multiple);
        const small = wanted.map((side, axis) => Math.min(side, large[axis]));
        return small[0] === large[0] && small[1] === large[1] ? null : small;
    }

    function windowsIn(large, window, overlap) { // of a latent's [height, width]
        const stride = (side) => Math.max(1, Math.floor(side * (1 - overlap)));
        return large.reduce((all, length, i) => all * (1 + Math.ceil((length - window[i]) / stride(window[i]))), 1);
    }

    function noiseGain(large, small) { // the root mean square of D's rows
        const overlap = (m, block, cell) => Math.max(0, Math.min((block + 1) * m, cell + 1) - Math.max(block * m, cell));
        const ofAxis = (L, S) => sum(range(S * L).map((i) => (overlap(L / S, Math.floor(i / L), i % L) * S / L) ** 2)) / S;
        return Math.sqrt(ofAxis(large[0], small[0]) * ofAxis(large[1], small[1]));
    }

    function firstSize(values, height, width, {model, first_multiple: multiple}) {
        if (height || width) return [height || width, width || height].map((side) => snap(side, multiple));
        const shaped = values.refine && values.refine_height && values.refine_width;
        const aspect = shaped ? values.refine_height / values.refine_width : model.native[0] / model.native[1];
        return sizeOfArea(area(model.native), aspect, model.multiple);
    }

    function strengthsOf(text) {
        const numbers = String(text).split(/[,;]/).map((part) => (part.trim() ? Number(part) : NaN));
        if (numbers.every((number) => number > 0 && number <= 1)) return numbers;
        throw new RangeError(`refine_eta2: expected numbers in (0, 1], got '${text}'`);
    }

    function targetSize({refine_width: width, refine_height: height, refine_factor: scale}, first, factor) {
        const aspect = first[0] / first[1], [wide, high] = [width || height / aspect, height || width * aspect];
        const wanted = width || height ? [high, wide] : first.map((side) => side * scale);
        const target = wanted.map((side) => snap(side, factor));
        const error = (what) =>
            new RangeError(`refine: the final size ${shown(target)} ${what} the first image's ${shown(first)}`);
        if (target[0] < first[0] || target[1] < first[1]) throw error("is smaller than");
        const stretched = target[0] / target[1] / aspect;
        if (!(stretched > 0.85 && stretched < 1.18)) throw error("has another shape than");
        return target;
    }

    function plan(values, first, model) {
        const eta2 = strengthsOf(values.refine_eta2), target = targetSize(values, first, model.factor);
        const pivot = values.refine_method === "Pivot", from = area(first), to = area(target);
        const count = pivot ? Math.max(1, Math.ceil(Math.log(to / from) / Math.log(4) - 1e-9)) : eta2.length;
        return range(count).map((stage) => {
            const done = stage + 1;
            const pixels = pivot ? from * (to / from) ** (done / count) : from + (to - from) * done / count;
            const between = sizeOfArea(pixels, target[0] / target[1], model.multiple);
            const size = done === count ? target : between.map((side, i) => clamp(side, first[i], target[i]));
            return pivot ? {size, strength: values.refine_pivot / 1000, timestep: values.refine_pivot}
                : {size, strength: eta2[stage], timestep: null};
        });
    }

    function guidanceWeight(timestep, {ug_theta: theta, ug_eta: eta, ug_edge: edge}, total, steps) {
        const pastEnd = timestep - (1 - eta) * total;
        if (edge === 0 || eta === 1) return pastEnd >= 0 ? theta : 0;
        return theta * clamp(pastEnd * steps / (edge * total), 0, 1);
    }

    function gammaAt(done, steps, values) {
        const active = steps - roundEven(values.pfsa_eta1 * steps), t = Math.max(steps - done + 1, 0);
        return active <= 0 || t > active ? 0 : values.pfsa_gamma * ((Math.cos(Math.PI * (active - t) / active) + 1) / 2) ** values.pfsa_beta;
    }

    function asking(weights, cadence) {
        const first = weights.findIndex((weight) => weight > 0); // of one stretch of guided steps
        return weights.map((weight, step) => weight > 0 && (step - first) % cadence === 0);
    }

    // run: {values, first: [height, width], steps, sampler, schedule, strength: null from noise}.
    // Returns what `drawing.tables` does; throws RangeError where that raises SettingsError.
    function tables(facts, run) {
        const {model} = facts, {values, strength} = run, levels = noiseLevels(model);
        const sampler = facts.samplers[run.sampler] || Object.values(facts.samplers)[0];
        const whole = scheduleTimes(run, sampler, levels);
        const timeAt = (timestep) => (sampler.timesteps ? timestep : levels.sigmaAt(timestep * levels.count / 1000));

        function smallOf(size, guided) {
            const asks = values.ug && values.ug_theta && guided;
            const small = asks ? smallSize(latentOf(size, model), values.ug_scale, facts) : null;
            return small && small.map((side) => side * model.factor);
        }

        function pass(times, size, small, from, gammas, of = whole.length - 1) {
            const starts = times.slice(0, -1), cadence = values.ug_cadence;
            const timesteps = sampler.timesteps ? starts : starts.map(levels.timestepOf);
            const weights = timesteps.map((t) => (small ? guidanceWeight(t, values, levels.count, of) : 0));
            const asked = asking(weights, cadence);
            const each = starts.map((_, i) => (i + 1 < starts.length ? sampler.evaluations : 1) + (i ? 0 : sampler.opening));
            const smalls = sum(each.map((n, i) => (asked[i] ? (cadence === 1 ? n : 1) : 0)));
            const whole = !small || values.ug_windows === "off";
            return {size, strength: from, small, timesteps, weights, evaluates_native: asked, gammas,
                windows: whole ? 1 : windowsIn(latentOf(size, model), latentOf(small, model), values.ug_overlap),
                evaluations: sum(each) + smalls, native_evaluations: smalls};
        }

        function firstPass() {
            const chosen = facts.chosen[strength === null ? "first pass" : "img2img"];
            const small = smallOf(run.first, chosen.includes(values.ug_passes));
            const mixes = values.pfsa && chosen.includes(values.pfsa_passes);
            let times = whole, {steps} = run, of = whole.length - 1;
            if (strength !== null) { // img2img denoises the last `steps` of a schedule of `of`
                const share = Math.min(strength, 0.999);
                of = run.fixed_steps ? Math.floor(steps / Math.max(share, 0.01)) : steps;
                steps = run.fixed_steps ? steps : Math.floor(share * steps) + 1;
                times = scheduleTimes({...run, steps: of}, sampler, levels)
                    .slice(-Math.max(2, sampler.timesteps ? steps - 1 : steps + 1));
            } else if (small && values.ug_shifted_start && !sampler.timesteps) {
                times = shiftedSchedule(times, noiseGain(latentOf(run.first, model), latentOf(small, model)));
            }
            const mixed = (i) => mixes && i + 2 < times.length; // the last state is the finished image
            const gammas = times.slice(1).map((_, i) => (mixed(i) ? gammaAt(i + 1, steps, values) : 0));
            return pass(times, run.first, small, strength ?? 1, gammas, of);
        }

        const stagePass = (stage) => {
            const times = stageTimes(stage, whole, timeAt), small = smallOf(stage.size, values.refine_guided);
            return pass(times, stage.size, small, stage.strength, times.slice(1).map(() => 0));
        };
        const passes = [firstPass(), ...(values.refine ? plan(values, run.first, model) : []).map(stagePass)];
        const {small, weights} = passes[0], guided = weights.filter((weight) => weight > 0).length;
        const seen = ({windows, size, small}) => (windows === 1 ? area(size) : windows * area(small));
        const work = (p) => (p.evaluations - p.native_evaluations) * seen(p) + p.native_evaluations * area(p.small || [0, 0]);
        const plain = (weights.length - 1) * sampler.evaluations + 1 + sampler.opening;
        return {passes,
            edge: small && guided < weights.length ? {timestep: (1 - values.ug_eta) * levels.count, step: guided} : null,
            evaluations: sum(passes.map((p) => p.evaluations)), plain_evaluations: plain,
            native_evaluations: sum(passes.map((p) => p.native_evaluations)),
            work: sum(passes.map(work)) / (plain * area(run.first)),
            latent_bytes: area(latentOf(passes.at(-1).size, model)) * model.channels * facts.bytes};
    }

    // ---- the page's inputs -------------------------------------------------------------------
    const inside = (id, selector) => document.querySelector(`#${CSS.escape(id)} :is(${selector})`);
    function read(id) { // what the component with this element id says; undefined where there is none
        const number = inside(id, "input[type=number]"), text = inside(id, "textarea, input");
        const checkbox = inside(`${id}-checkbox`, "input") || inside(id, "input[type=checkbox]"); // an accordion's first
        if (inside(`${id}-checkbox`, "input") || (checkbox && !number)) return checkbox.checked;
        if (number) return number.value === "" ? undefined : Number(number.value);
        return text && (text.type === "radio" ? inside(id, "input:checked") || {} : text).value;
    }

    const meant = (entries, {least}) => Object.fromEntries( // between 0, automatic, and the least value: automatic too
        entries.map(([name, value]) => [name, value > 0 && value < least[name] ? 0 : value]));

    function readRun({host, controls, defaults, ...facts}) {
        const of = (field, otherwise) => (host[field] ? read(host[field]) : undefined) ?? otherwise;
        const resized = host.resized && inside(host.resized, ".resolution:last-child"); // img2img by a factor
        const [width, height] = resized && resized.offsetParent
            ? resized.textContent.split("x").map(Number) : [of("width", 0), of("height", 0)];
        const values = meant(Object.entries(controls).map(([name, id]) => [name, read(id) ?? defaults[name]]), facts);
        return {
            values, first: firstSize(values, height, width, facts),
            steps: Math.max(1, of("steps", 20)), sampler: of("sampler", ""), schedule: of("schedule", "Automatic"),
            strength: host.strength ? of("strength", 0) : null,
            fixed_steps: typeof opts !== "undefined" && opts.img2img_fix_steps === true, // the WebUI's option
            images: of("batch", 1) * of("count", 1), model: of("model", ""), hires: of("hires", false),
        };
    }

    // ---- seconds, learnt from the runs of this browser ---------------------------------------
    const STORE = "hires-guidance-runs", KEPT = 20;
    let pending = null; // the run that was started here: its pixels, and the time that stood there before
    const plainPixels = (made, run) => made.plain_evaluations * area(run.first) * run.images;
    function measuredRuns() { // {model: [[pixels, seconds], ...]}
        try { return JSON.parse(localStorage.getItem(STORE)) || {}; } catch { return {}; } // off, or something else
    }

    function secondsFor(pixels, runs) { // on the line through the runs, by least squares
        const [x, y] = [0, 1].map((column) => sum(runs.map((run) => run[column])) / runs.length);
        const spread = sum(runs.map((run) => (run[0] - x) ** 2));
        const slope = spread && sum(runs.map((run) => (run[0] - x) * (run[1] - y))) / spread;
        return slope > 0 && y > slope * x ? y + slope * (pixels - x) : y * pixels / x;
    }

    function noteStart(event) {
        for (const {facts} of drawings()) {
            const {generate, stop, time} = facts.host, hit = (id) => event.target.closest(`#${CSS.escape(id)}`);
            if (stop.split(" ").some(hit)) pending = null;
            if (!hit(generate)) continue;
            const run = readRun(facts), made = attempt(facts, run);
            pending = made.error || run.hires ? null
                : {model: run.model, pixels: made.work * plainPixels(made, run), time, before: inside(time, ".measurement")};
        }
    }

    function noteEnd() {
        const element = pending && inside(pending.time, ".measurement");
        if (!element || element === pending.before) return;
        const [, minutes = 0, seconds] = /(?:(\d+) min\. )?([\d.]+) sec/.exec(element.textContent) || [];
        const {model, pixels} = pending, all = measuredRuns();
        pending = null;
        if (!seconds) return;
        all[model] = [...(all[model] || []), [pixels, 60 * minutes + Number(seconds)]].slice(-KEPT);
        try { localStorage.setItem(STORE, JSON.stringify(all)); } catch { /* storage is off or full */ }
    }

    // ---- words -------------------------------------------------------------------------------
    const brief = (number) => String(Number(number.toPrecision(number < 100 ? 2 : 3)));
    const escaped = (text) => String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
    const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
    function describe(part, index) {
        const [guided, mixed, asked] = [part.weights, part.gammas, part.evaluates_native].map((list) => list.filter(Number).length);
        const from = part.strength < 1 ? ` from strength ${brief(part.strength)}` : "";
        const ug = (guided ? `, ${guided} guided, ${asked} asking at ${shown(part.small)}` : "") +
            (part.windows > 1 ? `, in ${part.windows} windows` : "");
        return `${index ? `stage ${index}` : "first image"} ${shown(part.size)} in ` +
            `${count(part.timesteps.length, "step")}${from}${ug}${mixed ? `, ${mixed} mixed` : ""}`;
    }

    function sentences(facts, run, made) {
        const {evaluations, native_evaluations: small, plain_evaluations: plain, edge} = made;
        const runs = measuredRuns()[run.model] || [], sampler = facts.samplers[run.sampler] || {};
        const [theirs, ours] = [1, made.work].map((work) => work * plainPixels(made, run))
            .map((pixels) => (runs.length ? secondsFor(pixels, runs) : pixels));
        const asked = small ? ` (${small} at the native size)` : "";
        return [
            `${count(evaluations, "model evaluation")}${asked}, ${brief(evaluations / plain)} times the plain run's`,
            `time: ${brief(ours / theirs)} times the plain run's` + (runs.length
                ? `, about ${brief(ours)} s (from ${count(runs.length, "run")} in this browser)`
                : " by pixels; the first run here tells the seconds"),
            `largest latent: ${brief(made.latent_bytes * run.images / 1024)} KiB`,
            edge && `guidance ends at timestep ${brief(edge.timestep)}, after step ${edge.step} of ${made.passes[0].weights.length}`,
            sampler.own_steps && `${run.sampler} takes steps of its own; drawn are the schedule's`,
            run.schedule !== "Automatic" && !schedules[run.schedule] && !sampler.timesteps &&
                `the schedule ${run.schedule} is drawn as Uniform`,
        ].filter(Boolean);
    }

    // ---- the drawing -------------------------------------------------------------------------
    const HEIGHT = 190, TOP = 8, FLOOR = 100, BASE = 162, LEFT = 30, LABELLED = 66; // in pixels
    const path = (name, d) => `<path class="hires-guidance-${name}" d="${d}"/>`;
    const label = (x, y, words) => `<text x="${x}" y="${y}">${words}</text>`;
    const steps = (x0, step, shares) => `M${x0} ${FLOOR}` + // a line that is level within each step
        shares.map((share, i) => `V${FLOOR - share * (FLOOR - TOP)}H${x0 + (i + 1) * step}`).join("");

    function drawnPass(part, x0, width, top, largest, gamma) {
        const step = width / part.weights.length, high = Math.sqrt(area(part.size) / largest) * (BASE - FLOOR - 14);
        const marks = part.evaluates_native.map((asks, i) => (asks ? path("ask", `M${x0 + (i + 0.5) * step} ${FLOOR + 2}v6`) : ""));
        return `<rect x="${x0}" y="${BASE - high}" width="${width - 2}" height="${high}"/>` +
            (part.small ? path("weight", steps(x0, step, part.weights.map((weight) => weight / top))) : "") +
            (part.gammas.some(Boolean) ? path("mixing", steps(x0, step, part.gammas.map((g) => g / gamma))) : "") +
            marks.join("") + (width < LABELLED ? "" : label(x0 + 4, BASE - 4, shown(part.size)) +
                label(x0 + 4, BASE + 12, count(part.weights.length, "step")) +
                label(x0 + 4, BASE + 24, part.strength < 1 ? `from ${brief(part.strength)}` : ""));
    }

    function drawn({values}, {passes, edge}, width) {
        const all = sum(passes.map((p) => p.weights.length));
        const shares = passes.map((p) => Math.max(p.weights.length / all, 0.14)); // of the width, to be read
        const widths = shares.map((share) => share / sum(shares) * (width - LEFT - 2));
        const top = Math.max(1, values.ug_theta), largest = Math.max(...passes.map((p) => area(p.size)));
        const parts = passes.map((part, i) =>
            drawnPass(part, LEFT + sum(widths.slice(0, i)), widths[i], top, largest, values.pfsa_gamma));
        const end = edge && LEFT + widths[0] * edge.step / passes[0].weights.length;
        return `<svg role="img" width="${width}" height="${HEIGHT}" viewBox="0 0 ${width} ${HEIGHT}"` +
            ` aria-label="${escaped(passes.map(describe).join("; "))}">` +
            path("axis", `M${LEFT} ${TOP}V${FLOOR}H${width - 2}`) + label(2, TOP + 6, brief(top)) + label(2, FLOOR, "0") +
            parts.join("") + (edge ? path("edge", `M${end} ${TOP}V${FLOOR}`) : "") + "</svg>" +
            (widths.some((wide) => wide < LABELLED) ? list("facts", passes.map(describe)) : "");
    }

    const list = (name, lines) =>
        `<ul class="hires-guidance-${name}">${lines.map((words) => `<li>${escaped(words)}</li>`).join("")}</ul>`;

    function legend({passes}, values) {
        const key = (name, words) => `<li class="hires-guidance-key-${name}">${words}</li>`;
        const guided = key("weight", "guidance w<sub>t</sub>") + key("ask", "asks at the native size");
        const mixed = key("mixing", `mixing γ<sub>t</sub>, at most ${brief(values.pfsa_gamma)}`);
        return `<ul class="hires-guidance-legend">${passes.some((p) => p.small) ? guided : ""}` +
            `${passes[0].gammas.some(Boolean) ? mixed : ""}</ul>`;
    }

    function attempt(facts, run) { // the tables, or the sentence of what cannot run
        try { return tables(facts, run); } catch (error) {
            if (!(error instanceof RangeError)) throw error;
            return {error: error.message};
        }
    }

    function markup(facts, run, width) {
        if (!run.values.ug && !run.values.pfsa && !run.values.refine) return "";
        if (run.hires) return list("facts", ["a run with Hires. fix is not drawn"]);
        const made = attempt(facts, run);
        if (made.error) return `<p class="hires-guidance-error">${escaped(made.error)}</p>`;
        return drawn(run, made, width) + legend(made, run.values) + list("facts", sentences(facts, run, made));
    }

    // ---- following the page ------------------------------------------------------------------
    const known = new WeakMap(); // element to its facts, and to what it shows
    function drawings() {
        return [...document.querySelectorAll(".hires-guidance[data-facts]")].map((element) => {
            const text = element.dataset.facts;
            if ((known.get(element) || {}).text !== text) known.set(element, {element, text, facts: JSON.parse(text)});
            return known.get(element);
        });
    }

    function update() { // also what no event tells of: pasted settings, another width of the page
        noteEnd();
        for (const drawing of drawings()) {
            const width = Math.min(drawing.element.parentElement.clientWidth, 640);
            if (!width) continue; // in a closed tab
            const run = readRun(drawing.facts), state = JSON.stringify([run, width, measuredRuns()[run.model]]);
            if (state !== drawing.state) drawing.element.innerHTML = markup(drawing.facts, run, width);
            drawing.state = state;
        }
    }

    if (typeof document !== "undefined") {
        const soon = () => requestAnimationFrame(update);
        for (const event of ["input", "change", "click"]) document.addEventListener(event, soon, true);
        document.addEventListener("click", noteStart, true);
        setInterval(update, 400);
    }

    return {tables, firstSize, meant};
})();

if (typeof module !== "undefined") module.exports = hiresGuidance;
