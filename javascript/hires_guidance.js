// HiRes Guidance: a live drawing of what a run will do, under the controls that it follows.
//
// The element `.hires-guidance` brings its facts along (lib_hires/drawing.py makes them), and all
// else is read from the page's own inputs. The first half repeats the engine's tables, and
// tests/drawing_tables.json holds both to the same numbers; the second half draws them.
"use strict";

const hiresGuidance = (() => {
    // ---- numbers -----------------------------------------------------------------------------

    const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
    const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
    const range = (count) => Array.from({length: count}, (_, i) => i);
    const area = (size) => size[0] * size[1];
    const snap = (length, multiple) => Math.max(1, Math.floor(length / multiple + 0.5)) * multiple;

    function roundEven(x) { // as Python rounds
        const nearest = Math.round(x);
        return Math.abs(x % 1) === 0.5 && nearest % 2 ? nearest - 1 : nearest;
    }

    function sizeOfArea(pixels, aspect, multiple = 1) {
        const side = (x) => Math.ceil(Math.round(Math.sqrt(x) * 1e6) / 1e6);
        return [snap(side(pixels * aspect), multiple), snap(side(pixels / aspect), multiple)];
    }

    function interpolate(at, known, values) {
        let low = 0, high = known.length - 1;
        while (high - low > 1) {
            const middle = (low + high) >> 1;
            if (known[middle] <= at) low = middle; else high = middle;
        }
        const share = clamp((at - known[low]) / (known[high] - known[low]), 0, 1);
        return values[low] + share * (values[high] - values[low]);
    }

    // ---- schedules ---------------------------------------------------------------------------

    function noiseLevels(model) {
        const logs = model.sigmas.map(Math.log), steps = range(logs.length), last = logs.length - 1;
        return {
            count: logs.length,
            lowest: model.sigmas[0],
            highest: model.sigmas[last],
            at: (index) => model.sigmas[index],
            sigmaAt: (timestep) => Math.exp(interpolate(timestep, steps, logs)),
            timestepOf: (sigma) => interpolate(Math.log(sigma), logs, steps),
        };
    }

    const ramp = (count, from, to) => range(count).map((i) => from + (to - from) * i / Math.max(1, count - 1));
    const uniform = (n, levels) => [...ramp(n, levels.count - 1, 0).map(levels.sigmaAt), 0];
    const exponential = (n, levels) =>
        [...ramp(n, Math.log(levels.highest), Math.log(levels.lowest)).map(Math.exp), 0];

    const schedules = {
        "Karras": (n, levels) =>
            [...ramp(n, levels.highest ** (1 / 7), levels.lowest ** (1 / 7)).map((x) => x ** 7), 0],
        "Exponential": exponential,
        "Polyexponential": exponential,
        "Uniform": uniform,
        "Normal": uniform,
        "SGM Uniform": (n, levels) =>
            [...ramp(n + 1, levels.count - 1, 0).slice(0, -1).map(levels.sigmaAt), 0],
        "Simple": (n, levels) =>
            [...range(n).map((i) => levels.at(levels.count - 1 - Math.floor(i * (levels.count / n)))), 0],
        "DDIM": (n, levels) => {
            const stride = Math.max(1, Math.floor(levels.count / n));
            const every = range(levels.count).filter((i) => i >= 1 && (i - 1) % stride === 0);
            return [...every.map(levels.at).reverse(), 0];
        },
        "KL Optimal": (n, levels) =>
            ramp(n + 1, Math.atan(levels.highest), Math.atan(levels.lowest)).map(Math.tan),
    };

    function scheduleTimes(run, sampler, levels) {
        if (sampler.timesteps) {
            const stride = Math.max(1, Math.floor(levels.count / run.steps));
            const rising = range(Math.ceil(levels.count / stride)).map((i) => i * stride);
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

    function stageTimes(stage, whole, timeAt) {
        if (stage.timestep === null) {
            return whole.slice(-(Math.max(1, roundEven(stage.strength * (whole.length - 1))) + 1));
        }
        const start = timeAt(stage.timestep);
        return [start, ...whole.filter((time) => time < 0.99 * start)];
    }

    // ---- the engine's plan -------------------------------------------------------------------

    const latentOf = (size, model) => size.map((side) => Math.floor(side / model.factor));

    function smallSize(large, run, facts) { // in latent positions
        const native = latentOf(facts.model.native, facts.model);
        if (Math.sqrt(area(large) / area(native)) < facts.smallest_scale) return null;
        const multiple = facts.model.multiple / facts.model.factor, scale = run.values.ug_scale;
        const wanted = scale
            ? large.map((side) => snap(side / scale, multiple))
            : sizeOfArea(area(native), large[0] / large[1], multiple);
        const small = wanted.map((side, axis) => Math.min(side, large[axis]));
        return small[0] === large[0] && small[1] === large[1] ? null : small;
    }

    function noiseGain(large, small) { // the root mean square of D's rows
        const ofAxis = (L, S) => sum(range(S).map((block) => {
            const start = block * L / S, end = (block + 1) * L / S;
            const overlap = (cell) => Math.max(0, Math.min(end, cell + 1) - Math.max(start, cell));
            return sum(range(L).map((cell) => (overlap(cell) * S / L) ** 2));
        })) / S;
        return Math.sqrt(ofAxis(large[0], small[0]) * ofAxis(large[1], small[1]));
    }

    function firstSize(values, height, width, facts) {
        const model = facts.model;
        if (height || width) {
            return [height || width, width || height].map((side) => snap(side, facts.first_multiple));
        }
        const shaped = values.refine && values.refine_height;
        const wanted = shaped ? [values.refine_height, values.refine_width] : model.native;
        return sizeOfArea(area(model.native), wanted[0] / wanted[1], model.multiple);
    }

    function strengthsOf(text) {
        const numbers = String(text).split(/[,;]/).map((part) => (part.trim() ? Number(part) : NaN));
        if (numbers.every((number) => number > 0 && number <= 1)) return numbers;
        throw new RangeError(`refine_eta2: expected numbers in (0, 1], got '${text}'`);
    }

    function targetSize(values, first, factor) {
        const {refine_width: width, refine_height: height} = values;
        if (!width !== !height) {
            throw new RangeError("refine_width, refine_height: expected both or neither, " +
                `got ${width} and ${height}`);
        }
        const wanted = width ? [height, width] : first.map((side) => side * values.refine_factor);
        const target = wanted.map((side) => snap(side, factor));
        const named = `refine: the final size ${shown(target)}`;
        if (target[0] < first[0] || target[1] < first[1]) {
            throw new RangeError(`${named} is smaller than the first picture's ${shown(first)}`);
        }
        const stretched = target[0] / target[1] / (first[0] / first[1]);
        if (!(stretched > 0.85 && stretched < 1.18)) {
            throw new RangeError(`${named} has another shape than the first picture's ${shown(first)}`);
        }
        return target;
    }

    function plan(values, first, model) {
        const eta2 = strengthsOf(values.refine_eta2), target = targetSize(values, first, model.factor);
        const pivot = values.refine_method === "Pivot", from = area(first), to = area(target);
        const count = pivot
            ? Math.max(1, Math.ceil(Math.log(to / from) / Math.log(4) - 1e-9)) : eta2.length;
        return range(count).map((stage) => {
            const done = (stage + 1) / count;
            const pixels = pivot ? from * (to / from) ** done : from + (to - from) * (stage + 1) / count;
            const between = sizeOfArea(pixels, target[0] / target[1], model.multiple);
            return {
                size: stage + 1 === count ? target : between.map((s, i) => clamp(s, first[i], target[i])),
                strength: pivot ? values.refine_pivot / 1000 : eta2[stage],
                timestep: pivot ? values.refine_pivot : null,
            };
        });
    }

    function guidanceWeight(timestep, values, total, steps) {
        const {ug_theta: theta, ug_eta: eta, ug_edge: edge} = values;
        const pastEnd = timestep - (1 - eta) * total;
        if (edge === 0 || eta === 1) return pastEnd >= 0 ? theta : 0;
        return theta * clamp(pastEnd * steps / (edge * total), 0, 1);
    }

    function gammaAt(stepsToGo, steps, values) {
        const active = steps - roundEven(values.pfsa_eta1 * steps);
        if (!values.pfsa || active <= 0 || stepsToGo > active) return 0;
        const wave = (Math.cos(Math.PI * (active - stepsToGo) / active) + 1) / 2;
        return values.pfsa_gamma * wave ** values.pfsa_beta;
    }

    // run: {values, first: [height, width], steps, sampler, schedule, strength: null from noise}.
    // Returns what `drawing.tables` does; throws RangeError where that raises SettingsError.
    function tables(facts, run) {
        const {model} = facts, values = run.values, levels = noiseLevels(model);
        const sampler = facts.samplers[run.sampler] || Object.values(facts.samplers)[0];
        const whole = scheduleTimes(run, sampler, levels);
        const timeAt = (timestep) =>
            sampler.timesteps ? timestep : levels.sigmaAt(timestep * levels.count / 1000);

        const smallOf = (size, guided) => {
            if (!values.ug || !values.ug_theta || !guided) return null;
            const small = smallSize(latentOf(size, model), run, facts);
            return small && small.map((side) => side * model.factor);
        };

        function pass(times, size, small, strength, gammas) {
            const starts = times.slice(0, -1);
            const timesteps = sampler.timesteps ? starts : starts.map(levels.timestepOf);
            const weights = timesteps.map((t) =>
                small ? guidanceWeight(t, values, levels.count, whole.length - 1) : 0);
            let last = -values.ug_cadence;
            const asked = weights.map((weight, step) => {
                const asks = weight > 0 && step >= last + values.ug_cadence;
                if (asks) last = step;
                return asks;
            });
            const each = starts.map((_, i) => (i + 1 < starts.length ? sampler.evaluations : 1));
            const smalls = sum(each.map((n, i) => (asked[i] ? (values.ug_cadence === 1 ? n : 1) : 0)));
            return {
                size, strength, small, timesteps, weights, asked, gammas,
                evaluations: sum(each) + smalls, small_evaluations: smalls,
            };
        }

        function firstPass() {
            const kind = facts.chosen[run.strength === null ? "first pass" : "img2img"];
            const small = smallOf(run.first, kind.includes(values.ug_passes));
            const mixed = {...values, pfsa: values.pfsa && kind.includes(values.pfsa_passes)};
            let times = whole, steps = run.steps;
            if (run.strength !== null) {
                steps = Math.floor(Math.min(run.strength, 0.999) * steps) + 1;
                times = times.slice(-Math.max(2, sampler.timesteps ? steps - 1 : steps + 1));
            } else if (small && values.ug_shifted_start && !sampler.timesteps) {
                times = shiftedSchedule(times, noiseGain(latentOf(run.first, model), latentOf(small, model)));
            }
            const gammas = range(times.length - 1).map((i) =>
                gammaAt(Math.max(steps - i - 1, 0), steps, mixed));
            return pass(times, run.first, small, run.strength === null ? 1 : run.strength, gammas);
        }

        function stagePass(stage) {
            const times = stageTimes(stage, whole, timeAt);
            const small = smallOf(stage.size, values.refine_guided);
            return pass(times, stage.size, small, stage.strength, range(times.length - 1).map(() => 0));
        }

        const stages = values.refine ? plan(values, run.first, model) : [];
        const passes = [firstPass(), ...stages.map(stagePass)];
        const {small, weights} = passes[0];
        const guided = weights.filter((weight) => weight > 0).length;
        const work = sum(passes.map((p) => (p.evaluations - p.small_evaluations) * area(p.size) +
            p.small_evaluations * (p.small ? area(p.small) : 0)));
        const plain = (weights.length - 1) * sampler.evaluations + 1;
        return {
            passes,
            edge: small && guided < weights.length
                ? {timestep: (1 - values.ug_eta) * levels.count, step: guided} : null,
            evaluations: sum(passes.map((p) => p.evaluations)),
            small_evaluations: sum(passes.map((p) => p.small_evaluations)),
            plain_evaluations: plain,
            work: work / (plain * area(run.first)),
            latent_bytes: area(latentOf(passes.at(-1).size, model)) * model.channels * facts.bytes,
        };
    }

    const shown = (size) => `${size[1]}x${size[0]}`;

    return {tables, firstSize, shown, area, range, sum};
})();

if (typeof module !== "undefined") module.exports = hiresGuidance;
