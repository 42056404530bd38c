import { describe, expect, it } from "vitest";
import { scaleOf, Tally } from "../../model/colour";
import {
  cellMeaning,
  cellSentence,
  difference,
  pictureWords,
  pointedSentence,
  rangeName,
  share,
  sumSentence,
} from "./sentences";

const labels = ["[CLS]", "the", "river", "bank"];
const names = { queries: labels, keys: labels, against: null };
const at = { map: 0, query: 3, key: 2, cell: null };

describe("sentences", () => {
  it.each([
    [0.37213, "37.2%"],
    [1, "100%"],
    [0.0004, "0.04%"],
    [3.2e-8, "3.2e-6%"],
    [0, "0%"],
    [-0.12, "−12%"],
    [Number.NaN, "not a number"],
  ])("writes %f as %s", (weight, text) => {
    expect(share(weight)).toBe(text);
  });

  it("says who looks at whom", () => {
    expect(pointedSentence({ ...at, exact: 0.372 }, names)).toBe("bank (3) looks at river (2): 37.2%.");
    expect(pointedSentence({ ...at, exact: undefined }, names)).toBe("bank (3) at river (2) …");
    expect(pointedSentence({ ...at, exact: null }, names)).toBe(
      "bank (3) at river (2): the single weight was not kept.",
    );
    expect(pointedSentence({ ...at, exact: 0.1 }, { queries: null, keys: null, against: "layer 1, head 2" })).toBe(
      "token 3 looks at token 2: +10 points against layer 1, head 2.",
    );
  });

  it("says what a cell holds where it is more than one pair", () => {
    const cell = { queries: [128, 256], keys: [0, 1], weight: 0.5 } as const;
    expect(cellSentence({ ...at, exact: undefined, cell }, names, "max")).toBe(
      "Its cell, tokens 128–255 at token 0: largest weight 50%.",
    );
    expect(cellSentence({ ...at, exact: 0.5, cell: { ...cell, queries: [3, 4] } }, names, "max")).toBe("");
  });

  it("says what a sum is", () => {
    expect(sumSentence({ map: 0, side: "queries", tokens: [3, 4], sum: 0.25 }, names)).toBe(
      "bank (3): 25% of the attention is on the keys in view.",
    );
    expect(sumSentence({ map: 0, side: "keys", tokens: [0, 4], sum: 1.5 }, names)).toBe(
      "tokens 0–3 receive 1.5 each from the queries in view.",
    );
  });

  it("says what the colours are of", () => {
    const scale = scaleOf(new Tally(), "linear", "saccade", false);
    const signed = { ...scale, signed: true };
    expect(cellMeaning({ scale, exact: true, reduce: "max", cell: [1, 1] })).toBe("Weight");
    expect(cellMeaning({ scale, exact: false, reduce: "mean", cell: [128, 64] })).toBe(
      "Mean weight in a cell of 128 × 64 tokens",
    );
    expect(cellMeaning({ scale: signed, exact: false, reduce: "max", cell: [4, 4] })).toBe(
      "Difference of the cells’ largest weights, 4 × 4 tokens each",
    );
  });

  it("tells the picture in words", () => {
    const cells = [
      { queries: [3, 4], keys: [2, 3], weight: 0.5 },
      { queries: [0, 2], keys: [0, 2], weight: 0.25 },
    ] as const;
    const said = pictureWords(
      "layer 0, head 1",
      { queries: [0, 4], keys: [0, 4] },
      { queries: 4, keys: 4 },
      cells,
      names,
      0.4,
    );
    expect(said).toBe(
      "Map of layer 0, head 1: all 4 queries by 4 keys. Strongest: bank (3) looks at river (2): 50%; tokens 0–1 at tokens 0–1: 25%. " +
        "On average 40% of a query's attention is on its heaviest key in view.",
    );
    expect(pictureWords("x", { queries: [1, 2], keys: [0, 4] }, { queries: 4, keys: 4 }, [], names, null)).toMatch(
      /queries 1 to 1, keys 0 to 3\. No weight/,
    );
  });

  it("names ranges", () => {
    expect([rangeName(labels, [2, 3]), rangeName(labels, [1000, 3000]), difference(0.03)]).toEqual([
      "river (2)",
      "tokens 1,000–2,999",
      "+3 points",
    ]);
  });
});
