// Hover looks for a moment, a tap or Enter keeps the word, a second tap lets it go.
(() => {
  const wordOf = event => event.target.closest?.(".nc .word");
  function look(result, word) {
    const veil = result.querySelector(".veil"), stage = result.querySelector(".stage");
    veil.classList.toggle("on", Boolean(word));
    if (!word) return;
    const part = (name, length) => `${stage.style.getPropertyValue(name) * length}px`;
    const across = name => part(name, stage.clientWidth), down = name => part(name, stage.clientHeight);
    veil.style.maskImage = `url(${word.dataset.map}), linear-gradient(#000 0 0)`;
    veil.style.maskPosition = `${across("--x")} ${down("--y")}, 0 0`;
    veil.style.maskSize = `${across("--w")} ${down("--h")}, 100% 100%`;
  }
  const kept = result => result.querySelector(".word[aria-pressed=true]");
  document.addEventListener("pointerover", event => {
    const result = document.querySelector(".nc.result");
    if (result && event.pointerType === "mouse") look(result, wordOf(event) ?? kept(result));
  });
  document.addEventListener("click", event => {
    const word = wordOf(event), result = word?.closest(".result");
    if (!word) return;
    const keep = word.getAttribute("aria-pressed") !== "true";
    kept(result)?.setAttribute("aria-pressed", "false");
    word.setAttribute("aria-pressed", keep);
    look(result, keep ? word : null);
  });
})();
