/** The page as a notebook's widget. */
import { mount, unmount } from "svelte";
import App from "./App.svelte";
import type { Link } from "./look.svelte";
import { type WidgetModel, WidgetSource } from "./source/widget";

/** Puts a page into an output cell; called by anywidget, once for each display. Returns what takes it away again. */
export function render({ model, el }: { model: WidgetModel; el: HTMLElement }): () => void {
  const source = new WidgetSource(model);
  const frame = el.appendChild(document.createElement("div"));
  frame.className = "saccade-frame";
  frame.addEventListener("focusin", keepKeys);
  const measure = () => Object.assign(frame.style, { height: `${Number(model.get("height"))}px` });
  measure();
  model.on("change:height", measure);
  const app = mount(App, { target: frame, props: { source, link: trait(model), linked: false } });
  return () => {
    model.off("change:height", measure);
    void unmount(app);
    source.close();
    frame.remove();
  };
}

/** JupyterLab takes keys before a page hears of them ("b": a new cell), unless the very element they go to says so. */
function keepKeys({ target }: FocusEvent): void {
  (target as HTMLElement).dataset.lmSuppressShortcuts = "true";
}

/** The link is the widget's trait `view`, which Python reads and sets, and other displays of the widget. */
function trait(model: WidgetModel): Link {
  let known = ""; // to this display, which hears of its own changes as well
  const read = () => String(model.get("view") ?? "");
  return {
    read: () => {
      known = read();
      return known;
    },
    write: (link) => {
      known = link;
      model.set("view", link);
      model.save_changes();
    },
    listen: (changed) => {
      const heard = () => {
        if (read() !== known) changed();
      };
      model.on("change:view", heard);
      return () => model.off("change:view", heard);
    },
  };
}
