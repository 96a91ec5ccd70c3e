// What the page's script draws of the engine's plans. Run by test_drawing_script.py, which writes the plans.
"use strict";

const assert = require("node:assert");
const fs = require("node:fs");
const path = require("node:path");
const test = require("node:test");

const {markup, secondsFor, secondsIn, withRun} = require(
    path.join(__dirname, "..", "..", "javascript", "hires_guidance.js"));
const plans = JSON.parse(fs.readFileSync(process.env.HIRES_PLANS, "utf-8"));
const occurrences = (text, part) => text.split(part).length - 1;
const WIDTH = 640;

for (const [name, plan] of Object.entries(plans)) {
    test(`${name}: a rectangle for each pass, a mark for each native evaluation, numbers only`, () => {
        const text = markup(plan, [], WIDTH);
        assert.strictEqual(occurrences(text, "<rect"), plan.passes.length);
        const evaluated = plan.passes.flatMap((part) => part.evaluated).filter(Boolean);
        assert.strictEqual(occurrences(text, '"hires-guidance-evaluation"'), evaluated.length);
        assert.doesNotMatch(text, /NaN|undefined|Infinity|null/);
        const right = [...text.matchAll(/<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"/g)]
            .map(([, x, width]) => Number(x) + Number(width));
        assert.ok(Math.max(...right) <= WIDTH, `${right}`);
    });
}

test("the passes are labelled with what they are", () => {
    const text = markup(plans.hires, [], WIDTH);
    for (const words of ["first pass", "Hires. fix", "stage 1", "stage 2", "768x768", "8 steps", "strength 0.5"]) {
        assert.ok(text.includes(`>${words}</text>`), words);
    }
    assert.ok(text.includes('aria-label="first pass 512x512 in 20 steps'), text);
});

test("a pass that is left unfinished says of how many steps", () => {
    const text = markup(plans.unfinished, [], WIDTH);
    const [first, last] = [plans.unfinished.passes[0], plans.unfinished.passes.at(-1)];
    assert.ok(first.weights.length < 20 && last.whole_steps === 0);
    assert.ok(text.includes(`>${first.weights.length} of 20 steps</text>`), text);
});

test("the weights are a line of the strength's height for each step", () => {
    const [, line] = markup(plans.ug, [], WIDTH).match(/class="hires-guidance-weight" d="M30 100([^"]*)"/);
    const levels = [...line.matchAll(/V([\d.]+)H/g)].map(([, y]) => Number(y));
    assert.deepStrictEqual(levels, Array(20).fill(8)); // theta is 1, the top of the axis
});

test("the end of the window is marked", () => {
    assert.strictEqual(occurrences(markup(plans.ug, [], WIDTH), '"hires-guidance-edge"'), 0);
    const inside = {...plans.ug, edge: {timestep: 300, step: 5}};
    const text = markup(inside, [], WIDTH);
    assert.match(text, /class="hires-guidance-edge" d="M182 8V100"/); // 30 + 608 * 5 / 20
    assert.ok(text.includes("guidance ends at timestep 300, after step 5 of 20"));
});

test("notes are text", () => {
    const text = markup(plans.notes, [], WIDTH);
    assert.ok(text.includes("<li>&#60;b&#62;</li><li>it&#39;s</li>"), text);
});

test("a clip's frames are shown, and those of its native evaluations", () => {
    const text = markup(plans.clip, [], WIDTH);
    assert.ok(text.includes(">1024x1024, 32 frames</text>"), text);
    assert.ok(text.includes("7 evaluations at the native size of 16 frames"), text);
    assert.doesNotMatch(markup(plans.ug, [], WIDTH), /frame/);
});

test("a narrow drawing has no labels that would run into each other", () => {
    assert.strictEqual(occurrences(markup(plans.hires, [], 130), "<text"), 2); // the axis's own
});

test("the model evaluations are the line's, not the drawing's", () => {
    assert.doesNotMatch(markup(plans.ug, [], WIDTH), /model evaluation/);
    assert.ok(markup(plans.ug, [], WIDTH).includes("7 evaluations at the native size"));
});

test("the largest latent is in readable units", () => {
    for (const [bytes, words] of [[65536, "64 KiB"], [4 * 1024 ** 2, "4 MiB"], [2.5 * 1024 ** 2, "2.5 MiB"]]) {
        const text = markup({...plans.ug, latent_bytes: bytes}, [], WIDTH);
        assert.ok(text.includes(`largest latent: ${words}`), text);
    }
});

test("seconds come from the runs of this browser", () => {
    assert.ok(markup(plans.ug, [], WIDTH).includes("seconds are known after the first run in this browser"));
    const {plain_pixels: plain, pixels} = plans.ug;
    const text = markup(plans.ug, [[plain, 10]], WIDTH);
    const seconds = Number((10 * pixels / plain).toPrecision(2));
    assert.ok(text.includes(`about ${seconds} s, `), text);
    assert.ok(text.includes("(from 1 run in this browser)"));
});

test("two runs give a line, one run a share, and a line that falls is not believed", () => {
    assert.strictEqual(secondsFor(300, [[100, 10], [200, 15]]), 20);
    assert.strictEqual(secondsFor(300, [[100, 10]]), 30);
    assert.strictEqual(secondsFor(300, [[100, 20], [200, 10]]), 30);
});

test("the hosts' times are read", () => {
    assert.strictEqual(secondsIn("Time taken: 12.5 sec."), 12.5);
    assert.strictEqual(secondsIn("Time taken: 2 min. 3.5 sec."), 123.5);
    assert.strictEqual(secondsIn("stopped"), undefined);
});

test("of each model the last twenty runs are kept", () => {
    let runs = {other: [[1, 1]]};
    for (let i = 0; i < 25; i += 1) runs = withRun(runs, "model", i, i);
    assert.deepStrictEqual(runs.other, [[1, 1]]);
    assert.deepStrictEqual(runs.model.map(([pixels]) => pixels), Array.from({length: 20}, (_, i) => i + 5));
});
