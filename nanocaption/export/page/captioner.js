// The model: pixels -> captions with the probability of each word and what it looked at. It runs the graphs of
// nanocaption/export/as_onnx.py, whose names and shapes these are: one picture, K captions, L tokens so far, P patches.

import {logSumExp, search} from "./search.js";
import {normalised} from "./resize.js";
import {textOf, wordsOf} from "./tokenizer.js";

const START = 1, END = 2;

/** ort: onnxruntime-web. encoder, decoder: sessions. config: config.json. endings: see search.js, or null. */
export function captionerOf({ort, encoder, decoder, config, tokenizer, endings}) {
  const {layers, heads, width, max_seq_len: longest, grid} = config.sizes;
  const floats = (data, dims) => new ort.Tensor("float32", data, dims);
  const {BEAM_SIZE, LENGTH_PENALTY, MIN_LENGTH, NO_REPEAT_NGRAM} = config.settings;
  const options = {beamSize: BEAM_SIZE, lengthPenalty: LENGTH_PENALTY, minLength: MIN_LENGTH,
    noRepeatNgram: NO_REPEAT_NGRAM};
  const limits = {startId: START, endId: END, maxLength: longest - 1, endings};

  /** Per layer of the decoder the picture's keys and values, by the names under which the decoder takes them. */
  async function encode(pixels) {
    const side = config.image_spec.size;
    const given = {pixel_values: floats(normalised(pixels, config.image_spec), [1, 3, side, side])};
    return renamed(await encoder.run(given));
  }

  /** step(tokens (K), parents (K) or null) -> {logits, attention}, of each caption a Float32Array. */
  function startDecoding(memory) {
    let past = {}, length = 0;
    return async (tokens, parents) => {
      const rows = tokens.length;
      if (!length) {
        const empty = () => floats(new Float32Array(0), [1, rows, heads, 0, width / heads]);
        for (let i = 0; i < layers; i++) {
          for (const part of ["key", "value"]) past[`past_key_values.${i}.decoder.${part}`] = empty();
        }
      } else if (parents) {
        for (const name in past) past[name] = floats(reordered(past[name], parents), past[name].dims);
      }
      const ids = new ort.Tensor("int64", BigInt64Array.from(tokens, BigInt), [1, rows]);
      const position = new ort.Tensor("int64", BigInt64Array.of(BigInt(length++)), [1]);
      const {logits, attention, ...present} = await decoder.run({input_ids: ids, position_ids: position, ...memory, ...past});
      past = renamed(present);
      return {logits: rowsOf(logits), attention: rowsOf(attention)};
    };
  }

  /**
   * The captions of a picture, Uint8Array (S, S, 3), the best first: [{text, ids, logProb, words}], each of the words
   * {text, probability, map}: the product over its tokens, and what it looked at, Float32Array (grid, grid).
   */
  async function caption(pixels) {
    const memory = await encode(pixels), step = startDecoding(memory);
    const found = await search(async (tokens, parents) => (await step(tokens, parents)).logits, options, limits);
    if (found.some(one => Number.isNaN(one.logProb))) throw new Error("the model gives no numbers for this picture");
    const seen = await look(memory, found.map(one => one.ids));
    return found.map(({ids, logProb}, k) => ({
      text: textOf(tokenizer, ids), ids, logProb,
      words: wordsOf(tokenizer, ids).map(({text, places}) => ({
        text, probability: Math.exp(places.reduce((sum, place) => sum + seen[k][place].logProb, 0)),
        map: mean(places.map(place => seen[k][place].map)),
      })),
    }));
  }

  /** Captions once more through the decoder: of each token {logProb, map}. */
  async function look(memory, captions) {
    const step = startDecoding(memory), seen = captions.map(() => []);
    for (let place = 0; place < Math.max(1, ...captions.map(ids => ids.length)); place++) {
      const {logits, attention} = await step(captions.map(ids => place ? ids[place - 1] ?? END : START), null);
      captions.forEach((ids, k) => {
        if (place >= ids.length) return;
        const logProb = logits[k][ids[place]] - logSumExp(logits[k]);
        seen[k].push({logProb, map: attention[k].slice(attention[k].length - grid * grid)});
      });
    }
    return seen;
  }

  return {caption, grid};
}

/** present.0.encoder.key -> past_key_values.0.encoder.key */
function renamed(tensors) {
  return Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name.replace("present", "past_key_values"), tensor]));
}

/** (1, K, ...) -> its K parts */
function rowsOf({data, dims: [, rows]}) {
  const size = data.length / rows;
  return Array.from({length: rows}, (_, row) => data.subarray(row * size, (row + 1) * size));
}

function reordered(tensor, parents) {
  const rows = rowsOf(tensor), result = new Float32Array(tensor.data.length);
  parents.forEach((parent, row) => result.set(rows[parent], row * rows[0].length));
  return result;
}

function mean(maps) {
  return maps[0].map((_, i) => maps.reduce((sum, map) => sum + map[i], 0) / maps.length);
}
