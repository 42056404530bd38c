import { describe, expect, test } from "vitest";
import { headName } from "../../parts/names";
import type { HeadsAnswer, RolesAnswer, SiteInfo, TextInfo } from "../../source/contract";
import {
  alignedScales,
  described,
  type Facts,
  ordered,
  placed,
  roleNames,
  summary,
  tableOf,
  worthOf,
  written,
} from "./facts";
import { cellAt, flow, matrix, moved, rowOf } from "./layout";
import { baseScale, pixelsOf, thumbOf } from "./thumbs";

const site = (label: string, heads: number[]): SiteInfo => ({
  name: label,
  label,
  heads,
  queries: 2,
  keys: 2,
  query_tokens: null,
  key_tokens: null,
  exact: true,
  map: null,
});
const text: TextInfo = {
  id: "0",
  name: "A text",
  text: null,
  sites: [site("layer 0", [0, 1, 2]), site("layer 1", [4, 7])],
};
// The second site has two heads: its third one is NaN.
const heads: HeadsAnswer = {
  thumbs: {
    data: Float32Array.from([
      1,
      0,
      0.5,
      0.5,
      0,
      1,
      0.25,
      0.75,
      0.5,
      0.5,
      0,
      1,
      1,
      0,
      0,
      1,
      0.5,
      0.5,
      1,
      0,
      NaN,
      NaN,
      NaN,
      NaN,
    ]),
    shape: [2, 3, 2, 2],
  },
  statistics: [
    { name: "entropy", label: "entropy", unit: "nats", least: 0.5, most: 2.5 },
    { name: "sink", label: "weight on first", unit: "", least: 0, most: 0.9 },
  ],
  values: {
    data: Float32Array.from([0.5, 0.875, 2.5, 0.25, 1.5, 0.75, 1, 0.125, NaN, 0.625, NaN, NaN]),
    shape: [2, 3, 2],
  },
};
const roles: RolesAnswer = {
  roles: [
    ["previous", "", "first"],
    ["previous", ""],
  ],
  shares: [
    [0.5, 0, 0.9],
    [0.8, 0],
  ],
  meanings: { previous: "Looks at the token before.", first: "Looks at the first." },
};
const facts: Facts = { text, heads, roles };

describe("facts", () => {
  const names = (order: string) => ordered(facts, order).map(({ site, head }) => `${site}.${head}`);

  test("order by a statistic, both ways; unknown values last", () => {
    expect(names("entropy")).toEqual(["0.1", "0.2", "1.0", "0.0", "1.1"]);
    expect(names("-entropy")).toEqual(["0.0", "1.0", "0.2", "0.1", "1.1"]);
    expect(names("nonsense")).toEqual(["0.0", "0.1", "0.2", "1.0", "1.1"]);
  });
  test("order by role: frequent roles first, who plays it most first, none last", () => {
    expect(names("role")).toEqual(["1.0", "0.0", "0.2", "0.1", "1.1"]);
    expect(roleNames(facts)).toEqual(["previous", "first"]);
  });
  test("a layer's mean", () => {
    expect(worthOf(facts, { site: 0, head: "mean" }, 0)).toBe(1.5);
    expect(worthOf(facts, { site: 1, head: "mean" }, 0)).toBe(NaN);
  });
  test("values as they are written and placed", () => {
    const [entropy, sink] = heads.statistics as [HeadsAnswer["statistics"][0], HeadsAnswer["statistics"][0]];
    expect(written(entropy, 1.23456)).toBe("1.23 nats");
    expect(written(entropy, 0.0004)).toBe("<0.001 nats");
    expect(written(sink, 0.5)).toBe("50%");
    expect(written(sink, NaN)).toBe("not known");
    expect([placed(entropy, 1.5), placed(entropy, 9), placed(entropy, NaN)]).toEqual([0.5, 1, null]);
  });
  test("two texts have one scale", () => {
    const [entropy, ...others] = heads.statistics;
    const second = {
      ...facts,
      heads: { ...heads, statistics: [{ ...entropy, least: 1, most: 4 }, ...others] as HeadsAnswer["statistics"] },
    };
    expect(alignedScales([facts, second]).map((one) => one.heads.statistics[0])).toMatchObject([
      { least: 0.5, most: 4 },
      { least: 0.5, most: 4 },
    ]);
  });
  test("words", () => {
    expect(described(facts, { site: 1, head: 0 })).toBe(
      "layer 1, head 4, entropy 1 nats, weight on first 13%, role: previous",
    );
    expect(summary(facts)).toContain("5 heads in 2 attention calls");
    expect(summary(facts)).toContain(
      "most spread in layer 0, head 1 (2.5 nats) and least in layer 0, head 0 (0.5 nats)",
    );
    expect(summary(facts)).toContain("2 of them put more than half");
    expect(summary(facts)).toContain(
      "stands out most from equal weights, be it less than half of it: previous 2 and first 1.",
    );
  });
  test("words where there is one of all", () => {
    const statistics = [
      ...heads.statistics,
      { name: "distance", label: "distance looked", unit: "tokens", least: 0, most: 9 },
    ];
    const one: Facts = {
      text: { ...text, sites: [site("layer 0", [0])] },
      heads: { ...heads, statistics, values: { data: Float32Array.from([1.42, 0.4, 1]), shape: [1, 1, 3] } },
      roles: null,
    };
    expect(summary(one)).toBe(
      "A text: 1 head in 1 attention call. The entropy of layer 0, head 0 is 1.42 nats. It puts no more than half of its weight on the first and special tokens.",
    );
    expect(described(one, { site: 0, head: "mean" })).toBe(
      "layer 0, mean of 1 head, entropy 1.42 nats, weight on first 40%, distance looked 1 token",
    );
    expect(headName(one.text.sites[0] as SiteInfo, "mean")).toBe("mean of 1 head");
  });
  test("heads that are alike to the printed digits: none is least", () => {
    const values = { data: Float32Array.from([1.4201, 0.6, 1.4199, 0.4]), shape: [1, 2, 2] };
    const alike = { ...facts, text: { ...text, sites: [site("layer 0", [0, 1])] }, heads: { ...heads, values } };
    expect(summary(alike)).toContain(
      "Weight is equally spread in all of them (1.42 nats). 1 of them puts more than half of its",
    );
  });
  test("a table by the model's own numbers", () => {
    const { columns, rows } = tableOf(facts);
    expect(columns).toEqual(["text", "site", "head", "entropy", "sink", "role", "role_share"]);
    expect(rows[3]).toEqual(["0", "layer 1", 4, 1, 0.125, "previous", 0.8]);
  });
});

describe("layout", () => {
  const plan = matrix([3, 2], { width: 500, height: 400 }, 60);

  test("a matrix has the mean first, and shorter rows", () => {
    expect(plan.rows).toEqual([
      [0, 1, 2, 3],
      [4, 5, 6],
    ]);
    expect(plan.cells[4]).toMatchObject({ site: 1, head: "mean", x: 60 });
    expect(plan.width).toBeLessThanOrEqual(500);
  });
  test("the cell under the pointer", () => {
    const cell = plan.cells[6] as { x: number; y: number };
    expect(cellAt(plan, cell.x + 3, cell.y + 3)).toBe(6);
    expect(cellAt(plan, 5, cell.y + 3)).toBe(null);
    expect(cellAt(plan, cell.x + plan.pitch + 3, cell.y + 3)).toBe(null);
    expect(cellAt(plan, cell.x, 2)).toBe(null);
  });
  test("keys move within the grid", () => {
    expect(rowOf(plan, 6)).toEqual([1, 2]);
    expect(moved(plan, 3, "ArrowDown", false)).toBe(6);
    expect(moved(plan, 3, "ArrowRight", false)).toBe(3);
    expect(moved(plan, 6, "Home", false)).toBe(4);
    expect(moved(plan, 6, "Home", true)).toBe(0);
    expect(moved(plan, 0, "End", true)).toBe(6);
    expect(moved(plan, 0, "x", false)).toBe(null);
  });
  test("many heads stay large enough to be hit, wider than the window if need be", () => {
    const many = matrix(new Array<number>(48).fill(32), { width: 336, height: 400 }, 30);
    expect(many.pitch).toBe(20);
    expect(many.width).toBeGreaterThan(336);
  });
  test("cells grow in a large window, as far as all layers fit into it", () => {
    const layers = (count: number) => new Array<number>(count).fill(12);
    const pitch = (count: number, width: number, height: number) => matrix(layers(count), { width, height }, 70).pitch;
    expect(pitch(6, 3700, 1800)).toBe(200);
    expect(pitch(6, 3700, 900)).toBe(Math.floor((900 - 22) / 6));
    expect(pitch(24, 3700, 900)).toBe(104);
    expect(pitch(6, 1240, 1800)).toBe(Math.floor((1240 - 80) / 13));
  });
  test("a flow fills rows in order", () => {
    const order = Array.from({ length: 10 }, (_, head) => ({ site: 0, head }));
    const flowing = flow(order, { width: 400, height: 400 });
    expect(flowing.rows.flat()).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    expect(flowing.width).toBeLessThanOrEqual(400);
    expect(flowing.named).toBe(true);
  });
});

describe("thumbs", () => {
  test("of a head, of the mean, of none", () => {
    expect([...(thumbOf(heads, { site: 0, head: 1 }, 3)?.cells ?? [])]).toEqual([0, 1, 0.25, 0.75]);
    expect([...(thumbOf(heads, { site: 1, head: "mean" }, 2)?.cells ?? [])]).toEqual([0.75, 0.25, 0.5, 0.5]);
    expect(thumbOf(heads, { site: 1, head: 2 }, 2)).toBe(null);
  });
  test.each(["linear", "log", "rank"] as const)(
    "%s: the largest weight has the brightest colour, nothing the darkest",
    (tone) => {
      const pixels = pixelsOf({ cells: Float32Array.of(0, 0.1, 0.2, NaN), side: 2 }, tone, baseScale(tone, "saccade"));
      expect([...pixels.subarray(0, 4)]).toEqual([29, 34, 54, 255]);
      expect([...pixels.subarray(8, 12)]).toEqual([253, 243, 160, 255]);
      expect(pixels[15]).toBe(0);
    },
  );
});
