import { describe, expect, test } from "vitest";
import { countOf, listed, shownUnits, specialNames, unitsOf } from "./words";

const TOKENS = {
  labels: ["[CLS]", "em", "bed", "ding", " bank", "[SEP]", "[SEP]"],
  word: { data: Int32Array.of(0, 1, 1, 1, 2, 3, 4), shape: [7] },
  special: { data: Uint8Array.of(1, 0, 0, 0, 0, 1, 1), shape: [7] },
};

describe("units", () => {
  test("tokens by themselves", () => {
    const units = unitsOf(TOKENS, 7, false);
    expect(units.labels).toEqual(["[CLS]", "em", "bed", "ding", "bank", "[SEP]", "[SEP]"]);
    expect([...units.starts]).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
  });
  test("subwords merged", () => {
    const units = unitsOf(TOKENS, 7, true);
    expect(units.labels).toEqual(["[CLS]", "embedding", "bank", "[SEP]", "[SEP]"]);
    expect([...units.starts]).toEqual([0, 1, 4, 5, 6, 7]);
    expect([...units.of]).toEqual([0, 1, 1, 1, 2, 3, 4]);
    expect([...units.special]).toEqual([1, 0, 0, 1, 1]);
  });
  test("special ones are left out, unless there are no others", () => {
    expect([...shownUnits(unitsOf(TOKENS, 7, true), false)]).toEqual([1, 2]);
    expect(shownUnits(unitsOf(TOKENS, 7, true), true)).toHaveLength(5);
    const alone = { ...TOKENS, labels: ["[PAD]"], word: { data: Int32Array.of(0), shape: [1] } };
    expect([
      ...shownUnits(unitsOf({ ...alone, special: { data: Uint8Array.of(1), shape: [1] } }, 1, true), false),
    ]).toEqual([0]);
  });
  test("a token that is a blank keeps its label", () => {
    const blank = {
      labels: [" "],
      word: { data: Int32Array.of(0), shape: [1] },
      special: { data: Uint8Array.of(0), shape: [1] },
    };
    expect(unitsOf(blank, 1, true).labels).toEqual([" "]);
  });
  test("unknown tokens have their positions", () => {
    const units = unitsOf(null, 3, true);
    expect(units.labels).toEqual(["0", "1", "2"]);
    expect(units.merged).toBe(false);
    expect(countOf(units)).toBe(3);
  });
});

test("names of special tokens come once, and lists read like sentences", () => {
  expect(specialNames(unitsOf(TOKENS, 7, true))).toEqual(["[CLS]", "[SEP]"]);
  expect(listed([])).toBe("");
  expect(listed(["a"])).toBe("a");
  expect(listed(["a", "b", "c"])).toBe("a, b and c");
  expect(listed(["a", "b", "c", "d"])).toBe("a, b, c and 1 more");
});
