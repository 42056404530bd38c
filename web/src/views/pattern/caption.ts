/** What stands above a picture that is saved: what it is of, and what its colours mean. On the page that stands around it. */
import type { PaletteName, Scale } from "../../model/colour";
import { shortened, type Theme } from "./axes";
import { coloursOf, numbersOf } from "./legend";
import { FONT_SIZE, type Pen } from "./pen";

export interface Caption {
  /** "MiniLM, layer 3, head 5" */
  readonly title: string;
  /** The text, or "" where each map has its own above it. */
  readonly text: string;
  /** What a colour stands for. */
  readonly meaning: string;
  readonly palette: PaletteName;
}

/** Pixels that it needs. */
export const CAPTION_HEIGHT = 92;
const LEFT = 8;
const BAR = { top: 58, width: 280, height: 10, colours: 140 };

export function drawCaption(
  pen: Pen,
  { title, text, meaning, palette }: Caption,
  scale: Scale,
  width: number,
  theme: Theme,
): void {
  const room = width - 2 * LEFT;
  pen.text(shortened(title, room, pen, true), LEFT, 12, { colour: theme.ink, bold: true });
  pen.text(shortened(text, room, pen), LEFT, 29, { colour: theme.ink });
  pen.text(shortened(meaning, room, pen), LEFT, 48, { colour: theme.muted });
  const bar = Math.min(BAR.width, room);
  const step = bar / BAR.colours;
  pen.clip({ left: LEFT, top: BAR.top, width: bar, height: BAR.height }, () => {
    coloursOf(scale, palette, BAR.colours).forEach((colour, i) => {
      pen.fill(LEFT + i * step, BAR.top, step + 1, BAR.height, colour); // upon the next one's edge: no seam is seen
    });
  });
  for (const { place, text } of numbersOf(scale)) {
    const anchor = place < 0.02 ? "start" : place > 0.98 ? "end" : "middle";
    pen.text(text, LEFT + place * bar, BAR.top + BAR.height + 9, { colour: theme.ink, anchor, size: FONT_SIZE - 1 });
  }
}
