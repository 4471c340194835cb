// Keeps the page's files, so that it opens and captions without a network, and lets nothing ask another host.

importScripts("files.js");
const {files, version} = self.NANOCAPTION;
const SCOPE = registration.scope, CACHE = `nanocaption ${SCOPE} ${version}`;
const LARGE = 1e6; // bytes: more is kept when the page has loaded it, not before

addEventListener("install", event => event.waitUntil(keepAll(name => files[name].bytes < LARGE).then(() => skipWaiting())));

addEventListener("activate", event => event.waitUntil((async () => {
  for (const name of await caches.keys()) {
    if (name.startsWith(`nanocaption ${SCOPE} `) && name !== CACHE) await caches.delete(name);
  }
  await clients.claim();
})()));

addEventListener("message", event => event.waitUntil((async () => {
  const kept = await keepAll(() => true).then(() => true, () => false);
  event.source.postMessage({kept});
})()));

addEventListener("fetch", event => {
  const url = new URL(event.request.url);
  if (url.origin !== location.origin) {
    event.respondWith(Response.error());
    return;
  }
  if (event.request.method !== "GET" || !url.href.startsWith(SCOPE)) return;
  const name = url.href.slice(SCOPE.length).split(/[?#]/)[0] || "index.html";
  if (name in files) event.respondWith(answer(name, event));
  if (name === "files.js") event.respondWith(ownFiles());
});

async function answer(name, event) {
  const cache = await caches.open(CACHE), kept = await cache.match(name);
  if (kept) return kept;
  const response = await fetch(event.request);
  if (response.ok) event.waitUntil(put(cache, name, response.clone()).catch(() => {})); // "message" tells what is missing
  return response;
}

/** files.js as this version has it: it holds the digests of all others, and so cannot hold its own. */
function ownFiles() {
  const text = `self.NANOCAPTION = ${JSON.stringify(self.NANOCAPTION)};`;
  return new Response(text, {headers: {"Content-Type": "text/javascript"}});
}

/** Every file of which `wanted` says so is in the cache afterwards, or this fails. */
async function keepAll(wanted) {
  const cache = await caches.open(CACHE);
  await Promise.all(Object.keys(files).filter(wanted).map(async name => {
    if (!await cache.match(name)) await put(cache, name, await fetch(name, {cache: "no-cache"}));
  }));
}

/** Only what belongs to this version is kept: a host may be in the midst of getting the next one. */
async function put(cache, name, response) {
  const data = await response.arrayBuffer();
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  const sha256 = Array.from(digest, byte => byte.toString(16).padStart(2, "0")).join("");
  if (!response.ok || sha256 !== files[name].sha256) throw new Error(`${name} is another file`);
  await cache.put(name, new Response(data, {headers: {"Content-Type": response.headers.get("Content-Type") ?? ""}}));
}
