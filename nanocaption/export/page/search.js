// Beam search over one picture: the search, the rules and the numbers of nanocaption/model/decode_numpy.py, see there.

const FLOOR = -1e9, f32 = Math.fround;

/**
 * Captions, the best first: [{ids, logProb, score}]; ids without <start> and <end>, logProb NaN where the model gives no
 * numbers.
 * step(tokens, parents): one token more for each row, which continues the row parents[i] of before; resolves to the
 * logits, one Float32Array a row. options: beamSize, lengthPenalty, minLength, noRepeatNgram.
 * limits: startId, endId, maxLength; endings(ids, last), or null: per token whether it would make a bad ending.
 */
export async function search(step, options, limits) {
  return options.beamSize === 1 ? greedy(step, options, limits) : beams(step, options, limits);
}

async function greedy(step, options, {startId, endId, maxLength, endings}) {
  const history = [startId];
  let logProb = 0;
  while (history.length <= maxLength && history.at(-1) !== endId) {
    const [logits] = await step([history.at(-1)], null);
    const [best] = largest(allowed(logits, history, options, {endId, maxLength, endings}, -Infinity), 1);
    logProb = f32(logProb + f32(logits[best] - logSumExp(logits)));
    history.push(best);
  }
  return [captionOf(history.slice(1), endId, logProb, options.lengthPenalty)];
}

async function beams(step, options, limits) {
  const {startId, endId, maxLength} = limits, {beamSize, lengthPenalty} = options;
  let open = Array.from({length: beamSize}, (_, i) => ({total: i ? FLOOR : 0, logProb: i ? FLOOR : 0, ids: [startId]}));
  let done = Array.from({length: beamSize}, () => ({score: FLOOR, logProb: FLOOR, ids: []}));
  let parents = null;
  for (let length = 1; length <= maxLength; length++) {
    const rows = await step(open.map(beam => beam.ids.at(-1)), parents);
    const norm = f32(length ** lengthPenalty);
    const found = rows.flatMap((logits, row) => continued(open[row], row, logits, options, limits));
    const best = pick(found, beam => beam.total, Math.min(2 * beamSize, found.length));
    const ends = beam => beam.ids.at(-1) === endId;
    const finished = best.filter((beam, rank) => (ends(beam) || length === maxLength) && rank < beamSize
      && beam.total > FLOOR / 2).map(beam => ({...beam, score: f32(beam.total / norm)}));
    done = pick([...done, ...finished], beam => beam.score, beamSize);
    open = pick(best.map(beam => ends(beam) ? {...beam, total: FLOOR} : beam), beam => beam.total, beamSize);
    parents = open.map(beam => beam.row);
    if (f32(open[0].total / norm) <= done.at(-1).score) break; // nothing that is open can come among the best
  }
  const kept = done.filter(beam => beam.score > FLOOR / 2);
  const captions = kept.map(beam => captionOf(beam.ids.slice(1), endId, beam.logProb, lengthPenalty));
  return captions.length ? captions.sort((a, b) => b.score - a.score) : [{ids: [], logProb: NaN, score: NaN}];
}

/** The best ways on from a beam. */
function continued(beam, row, raw, options, limits) {
  const logits = allowed(raw, beam.ids, options, limits, FLOOR), all = logSumExp(raw);
  return largest(logits, Math.min(2 * options.beamSize, logits.length)).map(token => ({
    row, ids: [...beam.ids, token],
    total: f32(f32(beam.total + logits[token]) - all),
    logProb: f32(beam.logProb + f32(logits[token] - all)),
  }));
}

/** The logits with `none` in place of those that may not come. */
function allowed(logits, history, {minLength, noRepeatNgram}, {endId, maxLength, endings}, none) {
  const repeats = noRepeatNgram > 0 && history.length >= noRepeatNgram, tooShort = history.length <= minLength;
  if (!repeats && !tooShort && !endings) return logits;
  const forbidden = endings ? endings(history.slice(1), history.length === maxLength) : new Uint8Array(logits.length);
  if (repeats) {
    const tail = history.slice(history.length - noRepeatNgram + 1);
    for (let i = 0; i + tail.length < history.length; i++) {
      if (tail.every((token, j) => history[i + j] === token)) forbidden[history[i + tail.length]] = 1;
    }
  }
  if (tooShort) forbidden[endId] = 1;
  if ((repeats || endings) && forbidden.every(Boolean)) forbidden[endId] = 0;
  return logits.map((value, token) => forbidden[token] ? none : value);
}

/**
 * limits.endings from the automaton of endings.json, see nanocaption/model/ending_tables.py: after[256 * state + byte] is
 * the state that follows, bad[state] whether a text ends badly in it, `closed` the state behind a bad ending's full stop.
 */
export function endingsOf({after, bad, closed}, tokenBytes, endId) {
  const walk = (state, bytes) => bytes.reduce((at, byte) => after[256 * at + byte], state);
  return (ids, last) => {
    const state = ids.reduce((at, id) => walk(at, tokenBytes[id] ?? []), 0);
    return Uint8Array.from(tokenBytes, (bytes = [], token) => {
      if (token === endId) return bad[state];
      let at = state, isClosed = bytes.length > 0 && at === closed;
      for (const byte of bytes) {
        at = after[256 * at + byte];
        isClosed ||= at === closed;
      }
      return isClosed || (last && bad[at]) ? 1 : 0;
    });
  };
}

function captionOf(ids, endId, logProb, lengthPenalty) {
  if (Number.isNaN(logProb)) return {ids: [], logProb, score: NaN};
  const end = ids.indexOf(endId), length = end < 0 ? ids.length : end + 1;
  return {ids: end < 0 ? ids : ids.slice(0, end), logProb, score: logProb / length ** lengthPenalty};
}

export function logSumExp(logits) {
  const top = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  return f32(top + Math.log(logits.reduce((sum, value) => sum + Math.exp(value - top), 0)));
}

/** Where the `count` largest are, the largest first. */
function largest(values, count) {
  const places = [];
  for (let i = 0; i < values.length; i++) {
    if (places.length === count && !(values[i] > values[places.at(-1)])) continue;
    let at = places.length;
    while (at > 0 && values[i] > values[places[at - 1]]) at--;
    places.splice(at, 0, i);
    places.length = Math.min(places.length, count);
  }
  return places;
}

/** The `count` entries with the largest value, the largest first. */
function pick(entries, valueOf, count) {
  return largest(entries.map(valueOf), count).map(place => entries[place]);
}
