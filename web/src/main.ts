/** The page of a server, or of a folder that `saccade export` wrote: there the document says so, and nothing answers but files. */
import { mount } from "svelte";
import App from "./App.svelte";
import { addressBar } from "./look.svelte";
import type { Source } from "./source/contract";
import { LiveSource } from "./source/live";
import "./page.css";
import "./style.css";

const target = document.getElementById("saccade") as HTMLElement;
const base = new URL("./", location.href).href;
const exported = document.querySelector('meta[name="saccade-exported"]') !== null;
const source: Source = exported
  ? (await import("./source/hosted")).hostedSource(base)
  : new LiveSource(base, new URLSearchParams(location.search).get("token") ?? "");
target.replaceChildren();
mount(App, { target, props: { source, link: addressBar, linked: true } });
