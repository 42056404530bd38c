import { describe, expect, it } from "vitest";
import { colourOf, scaleOf, Tally } from "../../model/colour";
import { NOT_A_NUMBER, type Panel, type Scene } from "./scene";
import { paint } from "./software";
import { Tile } from "./tiles";

function sceneOf(weights: number[], shape: [number, number], against: number[] | null, window: Panel["window"]): Scene {
  const tally = new Tally();
  tally.add(1);
  const make = (values: number[]) =>
    new Tile([0, shape[0]], [0, shape[1]], new Float32Array(values), shape, true, "max");
  return {
    size: { width: 6, height: 6 },
    ratio: 1,
    panels: [
      {
        box: { left: 1, top: 1, width: 4, height: 4 },
        window,
        tiles: [make(weights)],
        against: against && [make(against)],
      },
    ],
    scale: scaleOf(tally, "linear", "saccade", against !== null),
    ground: [1, 2, 3],
    nothing: [9, 9, 9],
  };
}

function pixels(scene: Scene): (x: number, y: number) => number[] {
  const image = { data: new Uint8ClampedArray(6 * 6 * 4), width: 6, height: 6 };
  paint(image, scene);
  return (x, y) => [...image.data.subarray((y * 6 + x) * 4, (y * 6 + x) * 4 + 3)];
}

describe("the painter without a graphics card", () => {
  const whole = { x: 0, y: 0, sx: 2, sy: 2 };

  it("paints cells where they are, and the ground around them", () => {
    const scene = sceneOf([0.25, 0.5, 0.75, 1], [2, 2], null, whole);
    const at = pixels(scene);
    expect([at(0, 0), at(5, 5)]).toEqual([
      [1, 2, 3],
      [1, 2, 3],
    ]);
    expect([at(1, 1), at(4, 1), at(2, 3), at(4, 4)]).toEqual(
      [0.25, 0.5, 0.75, 1].map((weight) => colourOf(scene.scale, weight)),
    );
  });

  it("tells nothing from little, and from what is not a number", () => {
    const scene = sceneOf([0, 1e-9, Number.NaN, 1], [2, 2], null, whole);
    const at = pixels(scene);
    expect(at(1, 1)).toEqual([9, 9, 9]);
    expect(at(3, 1)).toEqual(colourOf(scene.scale, 0));
    expect(NOT_A_NUMBER).toContainEqual(at(1, 3));
  });

  it("paints differences on both sides of a neutral colour", () => {
    const scene = sceneOf([0.5, 0.25, 1, 0], [2, 2], [0.5, 0.75, 0, 0], whole);
    const at = pixels(scene);
    expect([at(1, 1), at(3, 1), at(1, 3), at(3, 3)]).toEqual([
      ...[0, -0.5, 1].map((weight) => colourOf(scene.scale, weight)),
      [9, 9, 9],
    ]);
  });

  it("paints a part far inside a long map from the right cells", () => {
    const at = pixels({
      ...sceneOf([0], [1, 1], null, { x: 131_070, y: 131_071, sx: 2, sy: 4 }),
      panels: [
        {
          box: { left: 1, top: 1, width: 4, height: 4 },
          window: { x: 131_070, y: 131_071, sx: 2, sy: 4 },
          tiles: [
            new Tile([131_070, 131_072], [131_070, 131_072], new Float32Array([0, 0, 1, 0]), [2, 2], true, "max"),
          ],
          against: null,
        },
      ],
    });
    expect([at(2, 2), at(3, 2)]).toEqual([
      [253, 243, 160],
      [9, 9, 9],
    ]);
  });
});
