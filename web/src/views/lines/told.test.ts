import { describe, expect, test } from "vitest";
import { unitsOf } from "../../model/words";
import type { SiteInfo, TextInfo } from "../../source/contract";
import { entriesOf } from "./entries";
import { beyond, type Column, LINE, middle, offsetOf, scrolledTo, sizeOf, slotsOf, visible, widthsOf } from "./layout";
import { keptNotice, outside, partnersNotice, passing, passingNotice } from "./outside";
import type { Row } from "./rows";
import { choiceInWords, statementOf, type Told } from "./says";
import { type Partner, standingOf } from "./selection";

const units = unitsOf(
  {
    labels: ["[S]", "roses", "by", "bank"],
    word: { data: Int32Array.of(0, 1, 2, 3), shape: [4] },
    special: { data: Uint8Array.of(1, 0, 0, 0), shape: [4] },
  },
  4,
  true,
);
const row = (partners: number[], weights: number[]): Row => ({
  partners: Int32Array.from(partners),
  weights: Float32Array.from(weights),
  whole: 1,
  special: 0,
});
const partner = (unit: number, weight: number): Partner => ({ unit, weight, heads: [weight] });

describe("sentences", () => {
  const told: Told = {
    units: { queries: units, keys: units },
    side: "queries",
    choice: { side: "queries", units: [3] },
    shares: { drawn: 0.5, special: 0.25, rest: 0.25 },
    ordinary: true,
  };

  test("say what the lines show, and where the rest goes", () => {
    expect(statementOf(told)).toBe(
      "Lines show 50% of the weight of “bank”; 25% goes to [S], not shown; 25% goes to weaker ones, beyond the 64 strongest of each word.",
    );
    expect(statementOf({ ...told, shares: { drawn: 1, special: 0, rest: 0 }, ordinary: false, choice: null })).toBe(
      "Lines show 100% of the weight of the words in view.",
    );
  });
  test("turn round with the side", () => {
    const turned: Told = { ...told, side: "keys", shares: { drawn: 0.5, special: 0.5, rest: 0 } };
    const said = (choice: number[]) => statementOf({ ...turned, choice: { side: "keys", units: choice } });
    expect(said([1])).toBe("Lines show 50% of the weight that “roses” receives; 50% comes from [S], not shown.");
    expect(said([1, 3])).toContain("the weight that “roses” and “bank” together receive;");
    expect(statementOf({ ...turned, choice: null })).toContain("the weight that the words in view receive;");
    expect(choiceInWords(turned, { side: "keys", units: [1] }, [partner(2, 0.25)])).toBe(
      "roses is looked at by by 25%.",
    );
  });
  test("say that there is no weight", () => {
    expect(statementOf({ ...told, shares: null })).toBe("No weight of “bank”: the mask hides all of it.");
    expect(choiceInWords(told, { side: "queries", units: [1] }, [])).toBe("roses looks at nothing.");
    expect(choiceInWords(told, { side: "queries", units: [0, 1] }, [])).toMatch(/ and roses look at nothing\.$/);
  });
});

describe("what lies beyond the window", () => {
  const shown = Int32Array.of(0, 1, 2, 3);
  const column: Column = { shown, slots: slotsOf(shown, 4), offset: LINE, height: 2 * LINE, line: LINE };

  test("is found at both ends", () => {
    const units = [3, 2, 1, 0];
    const of = (end: -1 | 1) => outside(column, end, units, (unit) => unit);
    expect([of(-1), of(1)]).toEqual([[0], [3]]);
    expect(passing(column, [row([0, 1], [0.5, 0.25]), row([3, 0], [0.25, 0.25])])).toEqual({ "-1": 0.375, "1": 0.125 });
    expect(passing(column, [])).toEqual({ "-1": 0, "1": 0 });
  });
  test("is told, but for what would be nothing", () => {
    const { labels } = units;
    expect(partnersNotice([partner(3, 0.25), partner(1, 0.125)], 1, labels)).toEqual({
      text: "↓ bank 25%, 1 more",
      title: "2 words below: 38%",
      unit: 3,
    });
    expect(partnersNotice([partner(3, 0.0004)], 1, labels)).toBeNull();
    expect(keptNotice([1, 3], -1, labels)).toEqual({ text: "↑ roses and 1 more", unit: 1 });
    expect(keptNotice([], -1, labels)).toBeNull();
    expect(passingNotice(0.375, -1)).toEqual({ text: "↑ 38% above", unit: null });
    expect(passingNotice(0, -1)).toBeNull();
  });
});

test("words stand out that are chosen or have weight of what is", () => {
  const choice = { side: "queries", units: [3] } as const;
  const partners = new Map([
    [1, partner(1, 0.25)],
    [2, partner(2, 0.01)],
  ]);
  const seen = (side: "queries" | "keys", unit: number) => {
    const { chosen, faint, partner } = standingOf(side, unit, choice, partners);
    return [chosen, faint, partner?.weight];
  };
  expect(seen("queries", 3)).toEqual([true, false, undefined]);
  expect(seen("queries", 1)).toEqual([false, true, undefined]);
  expect(seen("keys", 1)).toEqual([false, false, 0.25]);
  expect(seen("keys", 2)).toEqual([false, true, 0.01]);
  expect(seen("keys", 3)).toEqual([false, true, undefined]);
  expect(standingOf("keys", 3, null, new Map())).toEqual({ chosen: false, faint: false, partner: undefined });
});

test("bars stand on both sides only where there is room", () => {
  const longest = { queries: 90, keys: 300 };
  expect(widthsOf(1000, longest, "queries")).toEqual({
    labels: { queries: 90, keys: 200 },
    bars: { queries: 108, keys: 108 },
    span: 440,
  });
  expect(widthsOf(400, longest, "keys")).toEqual({
    labels: { queries: 90, keys: 100 },
    bars: { queries: 62, keys: 0 },
    span: 144,
  });
  expect(widthsOf(200, longest, "keys").span).toBe(70);
});

test("lines and letters grow with a large screen, and are as they are on others", () => {
  const longest = { queries: 90, keys: 300 };
  expect([360, 1280, 1500, 3700, 9999].map(sizeOf)).toEqual([1, 1, 1, 1.5, 1.5]);
  expect(widthsOf(1228, longest, "queries").span).toBe(440);
  expect(widthsOf(3700, longest, "queries")).toEqual({
    labels: longest,
    bars: { queries: 162, keys: 162 },
    span: 1295,
  });
  const shown = Int32Array.of(0, 1, 2, 3, 4, 5);
  const column: Column = { shown, slots: slotsOf(shown, 6), offset: 40, height: 80, line: 40 };
  expect([visible(column, 0), middle(column, 1), beyond(column, 3)]).toEqual([[1, 3], 20, 1]);
  expect([offsetOf(160, 6, 6, 80, 40), scrolledTo(5, 0, 80, 40)]).toEqual([160, 200]);
});

test("entries name text, head by the model's number and unit, and are of queries and keys whatever was asked", () => {
  const text: TextInfo = { id: "0", name: "roses by…", text: "roses by a bank", sites: [] };
  const subject = { text: "0", site: 0, side: "keys", queries: units, keys: units, ordinary: true } as const;
  const site = { name: "l.0", heads: [4, 7] } as unknown as SiteInfo;
  expect(entriesOf(text, subject, site, [1, "mean"], new Map([[3, [row([1], [0.5]), row([], [])]]]))).toEqual([
    ["roses by a bank", "l.0", "7", "word", 1, "roses", 3, "bank", 0.5],
  ]);
  const rows = new Map([[3, [row([1, 2], [0.5, 0.25])]]]);
  const tokens = { ...subject, side: "queries", queries: { ...units, merged: false } } as const;
  const far = { ...text, text: "roses ".repeat(1000) };
  expect(entriesOf(far, tokens, site, ["mean"], rows).map(([said, _, ...entry]) => [said, ...entry])).toEqual([
    ["roses by…", "mean", "token", 3, "bank", 1, "roses", 0.5],
    ["roses by…", "mean", "token", 3, "bank", 2, "by", 0.25],
  ]);
});
