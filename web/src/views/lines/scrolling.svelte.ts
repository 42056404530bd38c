/**
 * How far one text is scrolled: by hand, which scrolls the others with it; by another text or the link, which it does not
 * answer. Made while a component is.
 */
import { untrack } from "svelte";
import { type Column, scrolledTo } from "./layout";

/** How far the texts are scrolled: all of them together. In words. */
export interface Scroll {
  words: number;
}

/** What is scrolled; each part is looked at by itself, when it changes. */
export interface Scrolled {
  readonly scroll: Scroll;
  /** Words of the longer column. */
  readonly longest: number;
  /** Pixels that are seen, and those of a word. */
  readonly height: number;
  readonly line: number;
}

const MOVING = 140; // ms without a movement, after which it rests

export class Scrolling {
  /** What scrolls: its `onscroll` is `heard`. */
  element: HTMLElement | undefined = $state();
  /** In pixels. */
  top = $state(0);
  moving = $state(false);
  private still: ReturnType<typeof setTimeout> | undefined;
  /** Where it was put, not by hand. */
  private put = -1;

  constructor(private readonly of: Scrolled) {
    $effect(() => {
      const wanted = of.scroll.words * of.line;
      void [of.longest, of.height];
      if (!this.element || Math.abs(untrack(() => this.top) - wanted) < 1) return;
      this.element.scrollTop = wanted;
      this.put = this.element.scrollTop;
      this.top = this.put;
    });
  }

  heard(): void {
    if (!this.element) return;
    const now = this.element.scrollTop;
    if (Math.abs(now - this.put) < 1) return;
    this.put = -1;
    this.top = now;
    this.of.scroll.words = now / this.of.line;
    this.moving = true;
    clearTimeout(this.still);
    this.still = setTimeout(() => {
      this.moving = false;
    }, MOVING);
  }

  /** Until a slot of a column is in view. */
  reveal(column: Column, slot: number): void {
    if (!this.element) return;
    const { longest, height, line } = this.of;
    const there = scrolledTo(slot, column.offset, height, line);
    const own = Math.max(1, column.shown.length * line - height);
    const most = Math.max(0, longest * line - height);
    this.element.scrollTop = column.shown.length === longest ? there : (there / own) * most;
  }
}
