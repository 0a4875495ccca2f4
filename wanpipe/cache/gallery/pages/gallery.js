// The gallery's script, for the page of all runs and the page of one. Plain and without modules,
// which browsers do not load from the disk. Text is set as text, never as markup.
"use strict";

const find = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

/** Make an element; `properties` are set on it. */
function make(name, properties = {}) {
  return Object.assign(document.createElement(name), properties);
}

/** Make the video, or the moving picture, of a file. */
function film(name, label) {
  if (name.endsWith(".gif")) return make("img", { src: name, alt: label });
  const video = make("video", { src: name, controls: true, playsInline: true, preload: "auto" });
  video.setAttribute("aria-label", label);
  return video;
}

// --- The page of all runs -----------------------------------------------------------------------

/** Show the cards that fit the filters, in the order that is asked for. */
function filterCards(form, list) {
  const cards = all(".card", list).map((element) => ({
    element,
    prompt: find(".prompt", element).textContent.toLowerCase(),
    ...element.dataset,
  }));
  const seed = (card) => (card.seed === "" ? -1n : BigInt(card.seed));
  const compare = (one, other) => (one < other ? -1 : one > other ? 1 : 0);
  const newest = (one, other) => compare(other.date, one.date);
  const orders = {
    newest,
    oldest: (one, other) => newest(other, one),
    prompt: (one, other) => compare(one.prompt, other.prompt) || newest(one, other),
    seed: (one, other) => compare(seed(one), seed(other)) || newest(one, other),
  };
  let order = "newest";

  function apply() {
    const words = form.prompt.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const card of cards) {
      const day = card.date.slice(0, 10);
      const fits =
        words.every((word) => card.prompt.includes(word)) &&
        (!form.model.value || card.model === form.model.value) &&
        (!form.state.value || card.state.split(" ").includes(form.state.value)) &&
        (!form.from.value || day >= form.from.value) &&
        (!form.to.value || day <= form.to.value);
      card.element.hidden = !fits;
      count += fits;
    }
    if (form.sort.value !== order) {
      order = form.sort.value;
      list.append(...cards.sort(orders[order]).map((card) => card.element));
    }
    const of = count === cards.length ? "" : ` of ${cards.length}`;
    find("#count").textContent = `${count}${of} ${cards.length === 1 ? "run" : "runs"}`;
    find("#nothing").hidden = count > 0;
  }

  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  find("#reset").addEventListener("click", () => {
    form.reset();
    apply();
    form.prompt.focus();
  });
  window.addEventListener("pageshow", apply); // a browser may fill the fields in again
}

/** Play the video of a card in the place of its picture. */
function playInPlace(button) {
  const card = button.closest(".card");
  const video = film(card.dataset.film, find(".prompt", card).textContent);
  const poster = find("img", card);
  if (poster) video.poster = poster.src;
  button.parentElement.replaceChildren(video);
  if (video.play) {
    video.loop = true;
    video.play();
    video.focus();
  }
}

/** Let two videos play, pause and jump together. */
function synchronize(one, other) {
  for (const [from, to] of [[one, other], [other, one]]) {
    // each does to the other what the other does not do yet, so nothing goes back and forth
    from.addEventListener("play", () => to.paused && to.play());
    from.addEventListener("pause", () => !to.paused && !from.ended && to.pause());
    from.addEventListener("ratechange", () => { to.playbackRate = from.playbackRate; });
    from.addEventListener("seeking", () => {
      const time = Math.min(from.currentTime, to.duration || 0);
      if (Math.abs(to.currentTime - time) > 0.04) to.currentTime = time;
    });
  }
}

/** Show two runs side by side, with what differs. */
function showPair(dialog, cards) {
  const pair = cards.map((card, index) => {
    const figure = all("figure", dialog)[index];
    const { film: name, settings } = card.dataset;
    const poster = find("img", card);
    const label = all("span", find(".facts", card)).map((fact) => fact.textContent).join(", ");
    const shown = name ? film(name, label) : make("img", { src: poster.src, alt: label });
    if (name && poster) shown.poster = poster.src;
    find(".picture", figure).replaceChildren(shown);
    find("bdi", figure).textContent = `${find(".prompt", card).textContent}, ${label}`;
    return { shown, settings: JSON.parse(settings) };
  });
  const [left, right] = pair;
  const videos = pair.map(({ shown }) => shown).filter((shown) => shown.play);
  const play = find("#compare-play");
  play.hidden = !videos.length;
  play.textContent = videos.length > 1 ? "Play both" : "Play";
  play.onclick = () => {
    if (videos.every((video) => video.paused)) videos.forEach((video) => video.play());
    else videos.forEach((video) => video.pause());
  };
  for (const video of videos) {
    video.addEventListener("play", () => { play.textContent = "Pause"; });
    video.addEventListener("pause", () => { play.textContent = "Play both"; });
  }
  if (videos.length === 2) synchronize(...videos);
  const labels = [...new Set([...Object.keys(left.settings), ...Object.keys(right.settings)])];
  const rows = labels
    .map((label) => [label, left.settings[label] ?? "none", right.settings[label] ?? "none"])
    .filter(([, here, there]) => here !== there)
    .map(([label, ...values]) => {
      const row = make("tr");
      const cells = values.map((value) => make("td", { textContent: value, dir: "auto" }));
      row.append(make("th", { textContent: label, scope: "row" }), ...cells);
      return row;
    });
  const body = find("tbody", dialog);
  body.replaceChildren(...rows);
  body.parentElement.hidden = !rows.length;
  dialog.showModal();
}

/** Choose two cards to compare. */
function compareCards(list) {
  const dialog = find("#compare");
  let chosen = [];
  const say = (text) => { find("#said").textContent = text; };

  list.addEventListener("click", (event) => {
    const button = event.target.closest(".compare");
    if (!button) return;
    const before = chosen.includes(button);
    chosen = before ? chosen.filter((one) => one !== button) : [...chosen, button];
    button.setAttribute("aria-pressed", String(!before));
    say(chosen.length === 1 ? "One run is chosen. Choose another to compare it with." : "");
    if (chosen.length === 2) showPair(dialog, chosen.map((one) => one.closest(".card")));
  });
  find("#compare-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    all(".picture", dialog).forEach((picture) => picture.replaceChildren()); // ends the videos
    chosen.forEach((button) => button.setAttribute("aria-pressed", "false"));
    chosen.at(-1)?.focus();
    chosen = [];
    say("");
  });
}

// --- The page of a run --------------------------------------------------------------------------

/** Show the strip of the step and the frame that the sliders are at. */
function moveThroughSteps(section) {
  const { frames, count } = section.dataset;
  const strips = JSON.parse(section.dataset.strips);
  const [picture, step, frame] = ["#strip", "#step", "#frame"].map((name) => find(name, section));
  const screen = picture.parentElement;
  screen.style.setProperty("--frames", frames);
  screen.style.aspectRatio = `${picture.getAttribute("width") / frames} / ${picture.getAttribute("height")}`;
  screen.classList.add("moving");

  function show() {
    const strip = strips[step.value - 1];
    const text = `${strip.step} of ${count}`;
    const source = `../${strip.picture}`;
    if (picture.getAttribute("src") !== source) picture.src = source;
    picture.alt = `The prediction of step ${text}`;
    find("#step-text", section).textContent = text;
    step.setAttribute("aria-valuetext", text);
    if (!frame) return;
    screen.style.setProperty("--frame", frame.value - 1);
    find("#frame-text", section).textContent = `${frame.value} of ${frames}`;
    frame.setAttribute("aria-valuetext", `picture ${frame.value} of ${frames}`);
  }

  for (const slider of [step, frame]) slider?.addEventListener("input", show);
  window.addEventListener("pageshow", show); // a browser may move the sliders back
  show();
}

/** Copy the command; without a clipboard, select it. */
async function copyCommand() {
  const command = find("#command");
  let text = "Copied";
  try {
    await navigator.clipboard.writeText(command.textContent);
  } catch {
    getSelection().selectAllChildren(command);
    if (!document.execCommand("copy")) text = "Selected. Copy it with the keyboard.";
  }
  find("#copied").textContent = text;
}

// --- Start --------------------------------------------------------------------------------------

all("[data-script]").forEach((element) => { element.hidden = false; });
const cards = find("#cards");
if (cards) {
  filterCards(find("#filters"), cards);
  compareCards(cards);
  cards.addEventListener("click", (event) => {
    const button = event.target.closest(".play");
    if (button) playInPlace(button);
  });
}
if (find("#steps")) moveThroughSteps(find("#steps"));
find("#copy")?.addEventListener("click", copyCommand);
