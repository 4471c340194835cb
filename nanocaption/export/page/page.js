// What the visitor sees and does. The model runs in worker.js.

const element = id => document.getElementById(id);
const percent = share => share > 0.995 ? "over 99 %" : share < 0.0005 ? "under 0.1 %"
  : `${(100 * share).toFixed(share < 0.0095 ? 1 : 0)} %`;
let asked = 0; // pictures so far; what is answered to an earlier one is left aside
let shown = null; // {captions, grid, box}
let kept = null; // the word that was pressed
let worker = null;
const started = start();

// --- The model ---

async function start() {
  tell("Loading the model …");
  await keepOffline();
  worker = new Worker("worker.js", {type: "module"});
  worker.onerror = () => fail("The model cannot be loaded: this browser is too old, or a file of the page is missing.");
  worker.onmessage = ({data}) => {
    if (data.kind === "progress") element("progress").value = data.share;
    if (data.kind === "ready") {
      element("progress").hidden = true;
      if (!asked) tell("Ready.");
      navigator.serviceWorker?.ready.then(({active}) => active.postMessage("keep"));
    }
    if (data.kind === "failed" && (data.id ?? asked) === asked) fail(data.text);
    if (data.kind === "captions" && data.id === asked) show(data);
  };
}

/** Until the service worker is in control, so that it sees what is loaded; for 3 seconds at most. */
async function keepOffline() {
  const workers = navigator.serviceWorker; // not without https
  if (!workers) return;
  workers.onmessage = ({data}) => {
    element("offline").textContent = data.kept ? "Works offline from now on." : "Needs the network the next time.";
  };
  const control = workers.controller ? null : new Promise(done => workers.addEventListener("controllerchange", done));
  try {
    await workers.register("service-worker.js", {updateViaCache: "none"});
    await Promise.race([Promise.all([control, workers.ready]), new Promise(done => setTimeout(done, 3000))]);
  } catch {
    element("offline").textContent = "This browser keeps nothing for later.";
  }
}

function take(blob) {
  if (!blob) return;
  const id = ++asked;
  started.then(() => worker.postMessage({id, blob}));
  URL.revokeObjectURL(element("picture").src);
  element("picture").src = URL.createObjectURL(blob);
  element("picture").alt = "";
  element("result").hidden = true;
  tell("Looking at the picture …");
}

// --- What is told ---

/** spoken: what a screen reader says before the text, where that stands elsewhere for the eye. */
function tell(text, spoken = "") {
  const unseen = document.createElement("span");
  unseen.className = "hidden";
  unseen.textContent = spoken;
  element("status").replaceChildren(unseen, text);
  element("told").classList.remove("failed");
}

function fail(text) {
  tell(text);
  element("told").classList.add("failed");
  element("progress").hidden = true;
}

function show(answer) {
  shown = answer;
  element("result").hidden = false;
  element("others").replaceChildren(...answer.captions.map((caption, i) => {
    const button = document.createElement("button"), chance = document.createElement("small");
    chance.textContent = percent(Math.exp(caption.logProb));
    button.append(caption.text || "(no words)", " ", chance);
    button.addEventListener("click", () => choose(i));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
  choose(0);
  const best = answer.captions[0];
  tell(`Found in ${answer.seconds.toFixed(1)} s.`, `Caption: ${best.text || "(no words)"} `);
}

/** Show one of the captions with its words. */
function choose(number) {
  const {text, words} = shown.captions[number];
  [...element("others").querySelectorAll("button")].forEach((button, i) => button.setAttribute("aria-pressed", i === number));
  element("words").replaceChildren(...words.flatMap((word, i) => [wordButton(word, i), " "]));
  element("alt").value = element("picture").alt = text;
  kept = null;
  look(null);
}

function wordButton(word, i) {
  const button = document.createElement("button"), chance = document.createElement("small");
  chance.textContent = percent(word.probability);
  button.append(word.text, chance);
  button.className = "word";
  button.style.setProperty("--share", word.probability);
  button.tabIndex = i ? -1 : 0; // one stop of the Tab key; arrows go on
  button.setAttribute("aria-pressed", false);
  button.addEventListener("pointerenter", event => event.pointerType === "mouse" && look(word));
  button.addEventListener("pointerleave", () => look(kept));
  button.addEventListener("click", () => {
    kept = kept === word ? null : word;
    for (const other of element("words").children) other.setAttribute("aria-pressed", other === button && kept !== null);
    look(kept);
  });
  return button;
}

element("words").addEventListener("keydown", event => {
  const buttons = [...element("words").children], now = buttons.indexOf(document.activeElement);
  const next = {ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: buttons.length - 1}[event.key];
  if (!buttons[next]) return;
  buttons[now].tabIndex = -1;
  buttons[next].tabIndex = 0;
  buttons[next].focus();
  event.preventDefault();
});

// --- What a word looked at ---

/** Darken the picture where the word did not look, as nanocaption/use/attention.py lights it; null: nothing. */
function look(word) {
  const veil = element("veil"), context = veil.getContext("2d"), picture = element("picture");
  const hint = "Point at a word, or press it, to see where it looked.";
  element("looked").textContent = word ? `“${word.text}” (${percent(word.probability)}): ${placeOf(word.map)}.` : hint;
  veil.width = picture.naturalWidth && Math.min(picture.naturalWidth, 800);
  veil.height = picture.naturalWidth && Math.round(veil.width * picture.naturalHeight / picture.naturalWidth);
  if (!word || !veil.width) return;
  const [left, top, right, bottom] = shown.box, side = shown.grid;
  const even = word.map.reduce((sum, weight) => sum + weight, 0) / word.map.length;
  const full = Math.max(Math.max(...word.map), 5 * even);
  const light = new ImageData(side, side);
  word.map.forEach((weight, i) => light.data[4 * i + 3] = 255 * Math.max(0, (weight - even) / (full - even || 1)));
  const small = new OffscreenCanvas(side, side);
  small.getContext("2d").putImageData(light, 0, 0);
  context.fillStyle = "rgb(8 8 16 / 85%)";
  context.fillRect(0, 0, veil.width, veil.height);
  context.globalCompositeOperation = "destination-out";
  context.imageSmoothingQuality = "high";
  context.drawImage(small, left * veil.width, top * veil.height, (right - left) * veil.width, (bottom - top) * veil.height);
}

/** Where most of a map lies, in words. */
function placeOf(map) {
  const side = shown.grid, total = map.reduce((sum, weight) => sum + weight, 0) || 1;
  const thirds = Array(9).fill(0);
  map.forEach((weight, i) => thirds[3 * Math.floor(Math.floor(i / side) / side * 3) + Math.floor(i % side / side * 3)] += weight);
  const most = thirds.indexOf(Math.max(...thirds));
  if (thirds[most] / total < 0.2) return "looked all over the picture";
  const name = `${["upper ", "", "lower "][Math.floor(most / 3)]}${["left", "middle", "right"][most % 3]}`;
  return `looked mostly at the ${name}`;
}

// --- What the visitor does ---

element("open").addEventListener("click", () => element("file").click());
for (const id of ["file", "photo"]) {
  element(id).addEventListener("change", ({target}) => {
    take(target.files[0]);
    target.value = ""; // the same file may be chosen again
  });
}
addEventListener("dragover", event => {
  event.preventDefault();
  element("drop").classList.add("over");
});
addEventListener("dragleave", event => event.relatedTarget ?? element("drop").classList.remove("over"));
addEventListener("drop", event => {
  event.preventDefault();
  element("drop").classList.remove("over");
  take(event.dataTransfer.files[0]);
});
addEventListener("paste", event => take(event.clipboardData.files[0]));

element("copy").addEventListener("click", async () => {
  const text = element("alt").value;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not without https
    element("alt").select();
    document.execCommand("copy");
  }
  tell(`Copied: ${text}`);
});

// --- The camera ---

element("photograph").addEventListener("click", async () => {
  const own = matchMedia("(pointer: coarse)").matches; // a phone's camera program does it better
  if (own || !navigator.mediaDevices?.getUserMedia) return element("photo").click();
  try {
    element("video").srcObject = await navigator.mediaDevices.getUserMedia({video: {width: {ideal: 1280}}});
  } catch (error) {
    return fail(`The camera cannot be used: ${error.message}.`);
  }
  element("video").play();
  element("camera").showModal();
});
element("close").addEventListener("click", () => element("camera").close());
element("camera").addEventListener("close", () => {
  for (const track of element("video").srcObject.getTracks()) track.stop();
  element("photograph").focus();
});
element("shoot").addEventListener("click", async () => {
  const video = element("video"), canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  take(await canvas.convertToBlob());
  element("camera").close();
});

element("picture").addEventListener("load", ({target}) => {
  target.parentElement.style.setProperty("--ratio", target.naturalWidth / target.naturalHeight);
  if (shown) look(kept);
});
