import { expect, test } from "vitest";
import { Mouse } from "./mouse";

const at = (screenX: number, pointerType = "mouse") => ({ screenX, screenY: 5, pointerType });

test("a mouse that rests does not count after a key, until it has moved", () => {
  const mouse = new Mouse();
  expect([mouse.counts(at(1)), mouse.counts(at(1))]).toEqual([true, true]);
  mouse.rest();
  expect([mouse.counts(at(1)), mouse.counts(at(1, "touch")), mouse.counts(at(2)), mouse.counts(at(2))]).toEqual([
    false,
    false,
    true,
    true,
  ]);
});

test("nor does one that was there before anything was told of it; and fingers never do", () => {
  const mouse = new Mouse();
  mouse.rest();
  expect([mouse.counts(at(1)), mouse.counts(at(2)), mouse.counts(at(3, "touch"))]).toEqual([false, true, false]);
});
