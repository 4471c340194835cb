// Token ids -> text, for a byte-level BPE: what nanocaption/data/tokenizer.py and use/attention.py do.

const END = 2, UNK = 3; // <pad> <start> <end> <unk> are 0 to 3
const SPACES = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]+"; // Python's, not trim's
const AROUND = new RegExp(`^${SPACES}|${SPACES}$`, "g");

/** What tokenizer.json holds -> per id the bytes that it stands for, and whether it begins a word. */
export function readTokenizer(json) {
  const byteOf = byteLetters(), bytes = [], begins = [];
  const added = (json.added_tokens ?? []).map(token => [token.content, token.id]);
  for (const [letters, id] of [...Object.entries(json.model.vocab), ...added]) {
    const values = [...letters].map(letter => byteOf.get(letter));
    bytes[id] = id <= UNK ? [] : values.includes(undefined) ? [...new TextEncoder().encode(letters)] : values;
    begins[id] = letters.startsWith("Ġ"); // how a space is written
  }
  return {bytes, begins};
}

/** The text of ids, up to <end>. Bytes that make no whole character are left out. */
export function textOf(tokenizer, ids) {
  const end = ids.indexOf(END);
  const bytes = (end < 0 ? ids : ids.slice(0, end)).flatMap(id => id > UNK ? tokenizer.bytes[id] ?? [] : []);
  const text = decoded(new Uint8Array(bytes));
  return text.startsWith(" ") ? text.slice(1) : text;
}

/** A caption's words, split at spaces: [{text, places}], the places of its tokens among the ids. */
export function wordsOf(tokenizer, ids) {
  const groups = [];
  ids.forEach((id, place) => {
    if (id <= UNK) return;
    if (!groups.length || tokenizer.begins[id]) groups.push([]);
    groups.at(-1).push(place);
  });
  const words = groups.map(places => ({text: textOf(tokenizer, places.map(place => ids[place])).replace(AROUND, ""), places}));
  return words.filter(word => word.text);
}

function decoded(bytes) {
  try {
    return new TextDecoder("utf-8", {fatal: true, ignoreBOM: true}).decode(bytes);
  } catch {
    // The decoder's mark for a broken character, U+FFFD, may stand in a text itself: decoded around these.
    const parts = [];
    let begin = 0;
    for (let i = 0; i <= bytes.length; i++) {
      const mark = bytes[i] === 0xEF && bytes[i + 1] === 0xBF && bytes[i + 2] === 0xBD;
      if (!mark && i < bytes.length) continue;
      const part = new TextDecoder("utf-8", {ignoreBOM: true}).decode(bytes.subarray(begin, i));
      parts.push(part.replaceAll("\uFFFD", ""));
      begin = i + 3;
    }
    return parts.join("\uFFFD");
  }
}

/** The letter by which a byte-level BPE writes each byte: its own where it can be seen, else one above 255. */
function byteLetters() {
  const byteOf = new Map();
  for (let byte = 0, unseen = 0; byte < 256; byte++) {
    const seen = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte !== 0xAD);
    byteOf.set(String.fromCodePoint(seen ? byte : 0x100 + unseen++), byte);
  }
  return byteOf;
}
