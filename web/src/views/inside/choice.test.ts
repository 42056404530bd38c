import { expect, it } from "vitest";
import type { StrongestAnswer, TokensAnswer } from "../../source/contract";
import { heaviestKey, listedAround, moved, ordinaryQuery, paged } from "./choice";

const tokens = (labels: string[], word: number[], special: number[]): TokensAnswer => ({
  labels,
  word: { data: Int32Array.from(word), shape: [word.length] },
  special: { data: Uint8Array.from(special), shape: [special.length] },
});
const strongest = (...partner: number[]): StrongestAnswer => {
  const none = { data: new Float32Array(1), shape: [1, 1] };
  const shape = [1, 1, partner.length];
  return { partner: { data: Int32Array.from(partner), shape }, weight: none, whole: none, special: none };
};

it("starts with the last word that is one token", () => {
  const text = tokens(
    ["[CLS]", "the", "bank", "flo", "##oded", ".", "[SEP]"],
    [0, 1, 2, 3, 3, 4, 5],
    [1, 0, 0, 0, 0, 0, 1],
  );
  expect(ordinaryQuery(text, 7)).toBe(2);
  expect(ordinaryQuery(tokens(["flo", "##oded", "!"], [0, 0, 1], [0, 0, 0]), 3)).toBe(1);
  expect(ordinaryQuery(tokens(["[CLS]", "!"], [0, 1], [1, 0]), 2)).toBe(1);
  expect(ordinaryQuery(null, 9)).toBe(8);
});

it("starts with the heaviest key that is another token", () => {
  expect(heaviestKey(strongest(4, 2), 4, true, 9)).toBe(2);
  expect(heaviestKey(strongest(4, 2), 4, false, 9)).toBe(4);
  expect(heaviestKey(strongest(4, -1), 4, true, 9)).toBe(4);
  expect(heaviestKey(strongest(-1, -1), 8, true, 3)).toBe(2);
});

it("lists a part of a long text", () => {
  expect(listedAround(5, 10)).toEqual([0, 10]);
  expect(listedAround(500, 1000, 100)).toEqual([450, 550]);
  expect(listedAround(999, 1000, 100)).toEqual([900, 1000]);
  expect(paged([450, 550], 1, 1000)).toEqual([550, 650]);
  expect(paged([20, 120], -1, 1000)).toEqual([0, 100]);
  expect(paged([880, 980], 1, 1000)).toEqual([900, 1000]);
});

it("moves by keys inside the list", () => {
  expect(moved("ArrowRight", 3, 5)).toBe(4);
  expect(moved("ArrowRight", 4, 5)).toBe(4);
  expect(moved("Home", 4, 5)).toBe(0);
  expect(moved("a", 4, 5)).toBeNull();
});
