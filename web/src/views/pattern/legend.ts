/** What the colours mean: the palette evenly along a bar, with the weights that some of its places stand for. */
import { divergingColour, type PaletteName, paletteColour, type Scale, ticksOf } from "../../model/colour";
import { difference, share } from "./sentences";

/** A number at a place of the bar, from 0 to 1. */
export interface Tick {
  readonly place: number;
  readonly text: string;
}

const APART = 0.1; // of the bar

export function numbersOf(scale: Scale): Tick[] {
  const text = (weight: number) => (scale.signed ? difference(weight).replace(" points", "") : share(weight));
  return ticksOf(scale)
    .filter(({ place }, i, all) => i === 0 || place - (all[i - 1]?.place ?? 0) > APART)
    .map(({ weight, place }) => ({ place, text: text(weight) }));
}

/** Colours evenly along the bar. */
export function coloursOf(scale: Scale, palette: PaletteName, count: number): string[] {
  return Array.from({ length: count }, (_, i) => {
    const place = i / (count - 1);
    const colour = scale.signed ? divergingColour(2 * place - 1) : paletteColour(palette, place);
    return `rgb(${colour.join(" ")})`;
  });
}
