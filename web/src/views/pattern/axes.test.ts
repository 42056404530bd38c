import { expect, it } from "vitest";
import { scaleOf, Tally } from "../../model/colour";
import { drawFrame, type Frame, pointsOf, type Theme } from "./axes";
import type { Pen } from "./pen";

it.each([
  [0.123, "+12"],
  [-0.0345, "−3.5"],
  [0.0001, "≈0"],
  [1, "+100"],
])("writes a difference of %f as points: %s", (difference, text) => {
  expect(pointsOf(difference)).toBe(text);
});

it("writes a weight only where the number fits in its cell", () => {
  const written = (side: number, signed: boolean): string[] => {
    const said: string[] = [];
    const pen: Pen = {
      text: (text, _x, _y, { anchor }) => void (anchor === "middle" && said.push(text)),
      line: () => {},
      fill: () => {},
      frame: () => {},
      clip: (_, draw) => draw(),
      lowered: (_, draw) => draw(),
      width: (text) => 9 * text.length,
    };
    const box = { left: 0, top: 0, width: 2 * side, height: side };
    const weights = [0.123, -1];
    const frame: Frame = {
      box,
      window: { x: 0, y: 0, sx: side, sy: side },
      extent: { queries: 1, keys: 2 },
      title: "",
      queryLabels: null,
      keyLabels: null,
      sums: null,
      pointed: null,
      chosen: { query: null, key: null },
      weightAt: (_, key) => weights[key],
    };
    const tally = new Tally();
    tally.add(1);
    drawFrame(
      pen,
      frame,
      { left: 0, top: 0, right: 0, bottom: 0 },
      {} as Theme,
      scaleOf(tally, "linear", "saccade", signed),
    );
    return said.filter((text) => /[%+−]/.test(text));
  };
  expect(written(42, true)).toEqual(["+12", "−100"]);
  expect(written(41, false)).toEqual([]);
  expect(written(43, false)).toEqual(["12%"]);
  expect(written(60, false)).toEqual(["12%", "-100%"]);
});
