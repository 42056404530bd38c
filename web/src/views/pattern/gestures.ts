/** Mouse, finger and pen on the maps. */
import type { Engine } from "./engine";
import type { Point } from "./geometry";

export interface Heard {
  /** A pair was clicked. */
  click(): void;
  /** A part is being enclosed, between two points of the element; null: no more. */
  encloses(from: Point, to: Point): void;
  enclosed(): void;
  /** Whether a drag is to enclose a part even without the shift key. */
  enclosing(): boolean;
}

/** Moves of fewer pixels than these are clicks. */
const CLICK = 4;
const WHEEL = { pixel: 0.0016, line: 0.03, page: 0.5, pinch: 0.012 };

/** Let the maps on an element be moved, until the returned function is called. */
export function listen(element: HTMLElement, engine: Engine, heard: Heard): () => void {
  const down = new Map<number, Point>();
  let start: Point | null = null;
  let moved = false;
  let enclosing = false;

  const at = (event: MouseEvent): Point => {
    const box = element.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };

  const press = (event: PointerEvent): void => {
    if (event.button !== 0) return;
    const point = at(event);
    down.set(event.pointerId, point);
    element.setPointerCapture(event.pointerId);
    if (down.size > 1) {
      moved = true; // two fingers do not choose
      return;
    }
    start = point;
    moved = false;
    enclosing = event.shiftKey || heard.enclosing();
    if (event.pointerType !== "touch") engine.point(point); // a finger may be about to pan or zoom, and hides what it is on
  };

  const drag = (event: PointerEvent): void => {
    const point = at(event);
    const before = down.get(event.pointerId);
    if (!before) {
      if (event.pointerType !== "touch") engine.point(point);
      return;
    }
    if (start && Math.hypot(point.x - start.x, point.y - start.y) > CLICK) moved = true;
    if (!moved && down.size === 1) return;
    if (down.size === 1 && enclosing && start) heard.encloses(start, point);
    else if (down.size === 1) engine.pan(before.x - point.x, before.y - point.y);
    else pinch(event.pointerId, before, point);
    down.set(event.pointerId, point);
    if (down.size === 1 && !enclosing && event.pointerType !== "touch") engine.point(point);
  };

  const pinch = (id: number, before: Point, point: Point): void => {
    const other = [...down].find(([key]) => key !== id)?.[1];
    if (!other) return;
    const [old, now] = [before, point].map((one) => Math.max(Math.hypot(one.x - other.x, one.y - other.y), 8)) as [
      number,
      number,
    ];
    engine.zoom(now / old, { x: (point.x + other.x) / 2, y: (point.y + other.y) / 2 });
    engine.pan((before.x - point.x) / 2, (before.y - point.y) / 2);
  };

  const release = (event: PointerEvent): void => {
    if (!down.delete(event.pointerId) || down.size > 0) return;
    if (enclosing && moved && start && event.type === "pointerup") engine.enclose(start, at(event));
    else if (!moved && start && event.type === "pointerup") {
      engine.point(start);
      heard.click();
    }
    if (enclosing) heard.enclosed();
    start = null;
    enclosing = false;
  };

  // A finger that is lifted still points: how else would one read what it tapped?
  const leave = (event: PointerEvent): void => {
    if (down.size === 0 && event.pointerType !== "touch") engine.point(null);
  };

  const wheel = (event: WheelEvent): void => {
    const unit = event.ctrlKey
      ? WHEEL.pinch
      : event.deltaMode === 0
        ? WHEEL.pixel
        : event.deltaMode === 1
          ? WHEEL.line
          : WHEEL.page;
    const amount = Math.min(Math.max(event.deltaY * unit, -0.7), 0.7);
    const changed = event.shiftKey
      ? engine.pan(event.deltaY || event.deltaX, 0)
      : engine.zoom(Math.exp(-amount), at(event));
    if (changed || event.ctrlKey) event.preventDefault(); // else the page scrolls on
    if (changed) engine.point(at(event));
  };

  const twice = (event: MouseEvent): void => {
    engine.zoom(event.altKey ? 0.5 : 2, at(event));
  };

  const heardOf = [
    ["pointerdown", press],
    ["pointermove", drag],
    ["pointerup", release],
    ["pointercancel", release],
    ["pointerleave", leave],
    ["dblclick", twice],
  ] as const;
  for (const [name, hear] of heardOf) element.addEventListener(name, hear as EventListener);
  element.addEventListener("wheel", wheel, { passive: false });
  return () => {
    for (const [name, hear] of heardOf) element.removeEventListener(name, hear as EventListener);
    element.removeEventListener("wheel", wheel);
  };
}
