// The page's script computes what the engine's functions do: node --test tests/javascript
"use strict";

const assert = require("node:assert");
const path = require("node:path");
const test = require("node:test");

const root = path.join(__dirname, "..", "..");
const {facts, runs} = require(path.join(root, "tests", "engine", "run", "drawing_tables.json"));
const {tables, meant} = require(path.join(root, "javascript", "hires_guidance.js"));

function agree(given, wanted, where) {
    if (typeof wanted === "number") {
        const difference = Math.abs(given - wanted);
        assert.ok(difference <= 1e-12 + 1e-5 * Math.abs(wanted), `${where}: ${given}, not ${wanted}`);
    } else if (wanted !== null && typeof wanted === "object") {
        assert.deepStrictEqual(Object.keys(given).sort(), Object.keys(wanted).sort(), where);
        for (const key of Object.keys(wanted)) agree(given[key], wanted[key], `${where}.${key}`);
    } else {
        assert.strictEqual(given, wanted, where);
    }
}

for (const [index, {run: asked, tables: wanted, error}] of runs.entries()) {
    const run = {...asked, values: meant(Object.entries(asked.values), facts)};
    test(`run ${index}: ${wanted ? `${wanted.passes.length} passes` : error}`, () => {
        if (error) {
            assert.throws(() => tables(facts, run), {name: "RangeError", message: error});
        } else {
            agree(tables(facts, run), wanted, "tables");
        }
    });
}
