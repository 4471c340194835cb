// Loads the model, then captions the pictures that the page sends, one after the other, beside the page, which so stays
// alive. In: {id, blob}. Out: {kind: "progress", share}, {kind: "ready", ...}, {kind: "captions", id, ...}, and {kind: "failed", ...}.

import "./files.js";
import * as ort from "./ort.wasm.bundle.min.js";
import {captionerOf} from "./captioner.js";
import {readPicture} from "./pictures.js";
import {seenPart} from "./resize.js";
import {endingsOf} from "./search.js";
import {readTokenizer} from "./tokenizer.js";

const WASM = "ort-wasm-simd-threaded.wasm";
const {files, graphs} = self.NANOCAPTION;
const loading = load();
loading.catch(error => postMessage({kind: "failed", text: `The model cannot be loaded: ${error.message}.`}));

let before = Promise.resolve();
onmessage = ({data}) => before = before.then(() => answer(data));

async function answer({id, blob}) {
  try {
    const {config, captioner} = await loading, started = performance.now();
    const {pixels, width, height} = await readPicture(blob, config.image_spec);
    const captions = await captioner.caption(pixels);
    postMessage({kind: "captions", id, captions, grid: captioner.grid, box: seenPart(height, width, config.image_spec),
      seconds: (performance.now() - started) / 1000});
  } catch (error) {
    postMessage({kind: "failed", id, text: `The picture cannot be captioned: ${error.message}.`});
  }
}

async function load() {
  const names = [...graphs, WASM, "config.json", "tokenizer.json", ...(files["endings.json"] ? ["endings.json"] : [])];
  const total = names.reduce((sum, name) => sum + files[name].bytes, 0);
  let come = 0;
  const tell = bytes => postMessage({kind: "progress", share: (come += bytes) / total});
  const [encoderData, decoderData, wasm, ...texts] = await Promise.all(names.map(name => fetched(name, tell)));
  const [config, tokenizerJson, automaton] = texts.map(data => JSON.parse(new TextDecoder().decode(data)));
  ort.env.wasm.numThreads = 1; // several would need headers that static hosts do not send
  ort.env.wasm.wasmBinary = wasm;
  ort.env.logLevel = "error";
  const [encoder, decoder] = [await session(encoderData), await session(decoderData)];
  const tokenizer = readTokenizer(tokenizerJson);
  const endings = automaton ? endingsOf(automaton, tokenizer.bytes, 2) : null;
  postMessage({kind: "ready"});
  return {config, captioner: captionerOf({ort, encoder, decoder, config, tokenizer, endings})};
}

function session(data) {
  // Weights of 8 bits become float32 once, as in Python: see quantize in nanocaption/export/onnx_export.py.
  const extra = {session: {disable_quant_qdq: "1"}};
  return ort.InferenceSession.create(new Uint8Array(data), {executionProviders: ["wasm"], extra});
}

/** The bytes of one of the page's own files, checked. tell: is given how many more have come. */
async function fetched(name, tell) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name}: the server answers ${response.status}`);
  const data = new Uint8Array(files[name].bytes), reader = response.body.getReader();
  let length = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (length + part.value.length <= data.length) data.set(part.value, length);
    length += part.value.length;
    tell(part.value.length);
  }
  if (length !== data.length || !await isIntact(data, files[name].sha256)) {
    throw new Error(`${name} is not the file that this page was made with: reload the page`);
  }
  return data.buffer;
}

/** Without https there is no way to tell; then the length alone is compared. */
async function isIntact(data, sha256) {
  if (!globalThis.crypto?.subtle) return true;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return Array.from(digest, byte => byte.toString(16).padStart(2, "0")).join("") === sha256;
}
