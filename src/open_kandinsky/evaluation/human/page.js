"use strict";

const PIXELS = 128; // a picture that is smaller is enlarged without smoothing
const KEYS = { ArrowLeft: "left", ArrowDown: "equal", ArrowRight: "right", 1: "left", 2: "equal", 3: "right" };

const $ = (id) => document.getElementById(id);
const images = { left: $("left").firstElementChild, right: $("right").firstElementChild };
let view = null; // what the server said last
let looking = false; // whether both pictures are there to be judged, and no answer is on its way
let returned = false; // whether the judge has come back to this pair: it stays until they go on

async function ask(path, options) {
  const answer = await fetch(path, options).catch(() => {
    throw new Error("The program that shows this page does not answer");
  });
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error);
  return said;
}

function pairAt(at) {
  const query = new URLSearchParams({ judge: view.judge });
  if (at !== undefined) query.set("at", at);
  return ask(`pair?${query}`);
}

// Do what talks to the server, one thing at a time; say what went wrong.
async function during(work) {
  looking = false;
  $("trouble").hidden = true;
  try {
    await work();
  } catch (error) {
    $("trouble").textContent = `${error.message}. Load the page again to go on; what was answered is kept.`;
    $("trouble").hidden = false;
  }
}

function show(part) {
  for (const main of document.querySelectorAll("main")) main.hidden = main.id !== part;
}

async function present(said, isBack) {
  view = said;
  returned = isBack;
  if (view.pair === null) {
    $("all").textContent = view.total;
    show("end");
    return;
  }
  show("pair");
  $("prompt").textContent = view.pair.prompt;
  $("who").textContent = view.judge;
  await loaded();
  prefetch();
  draw();
}

// Both pictures appear together: none is judged before the other is there.
async function loaded() {
  $("pair").classList.add("waiting");
  for (const side in images) images[side].src = `picture/${view.pair[side]}`;
  try {
    await Promise.all(Object.values(images).map((image) => image.decode()));
  } catch {
    throw new Error("A picture cannot be shown");
  }
  for (const image of Object.values(images)) image.classList.toggle("tiny", image.naturalWidth < PIXELS);
  $("pair").classList.remove("waiting");
  looking = true;
}

function prefetch() {
  for (const side in view.next ?? {}) new Image().src = `picture/${view.next[side]}`;
}

function unanswered() {
  return Object.keys(view.questions).find((name) => !(name in view.pair.answers));
}

function draw() {
  $("progress").max = view.total;
  $("progress").value = view.done;
  $("where").textContent = `Pair ${view.at + 1} of ${view.total}`;
  $("questions").replaceChildren(...Object.entries(view.questions).map(([name, words]) => asked(name, words)));
  $("back").disabled = view.at === 0;
  $("on").disabled = unanswered() !== undefined;
}

function asked(name, words) {
  const field = $("question").content.firstElementChild.cloneNode(true);
  field.querySelector("legend").textContent = words;
  field.classList.toggle("asked", name === unanswered());
  for (const button of field.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", view.pair.answers[name] === button.dataset.answer);
    button.addEventListener("click", () => vote(name, button.dataset.answer));
  }
  return field;
}

function vote(question, answer) {
  if (!looking) return;
  during(async () => {
    const body = JSON.stringify({ judge: view.judge, pair: view.pair.name, question, answer });
    view = await ask("vote", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    draw();
    if (unanswered() === undefined && !returned) {
      await new Promise((go) => setTimeout(go, 200)); // long enough to see what was chosen
      await present(await pairAt(), false);
    } else {
      looking = true;
    }
  });
}

function back() {
  if (looking && view.at > 0) during(async () => present(await pairAt(view.at - 1), true));
}

function on() {
  if (looking && unanswered() === undefined) during(async () => present(await pairAt(), false));
}

function begin(judge) {
  during(async () => {
    const said = await ask(`pair?${new URLSearchParams({ judge })}`);
    history.replaceState(null, "", `?${new URLSearchParams({ judge: said.judge })}`);
    await present(said, false);
  });
}

document.forms[0].addEventListener("submit", (event) => {
  event.preventDefault();
  begin($("name").value);
});
$("back").addEventListener("click", back);
$("on").addEventListener("click", on);
$("again").addEventListener("click", () => during(async () => present(await pairAt(view.total - 1), true)));
for (const side in images) {
  $(side).addEventListener("click", () => {
    const large = $("large").firstElementChild;
    large.src = images[side].src;
    large.className = images[side].className;
    $("large").showModal();
  });
}
$("large").addEventListener("click", () => $("large").close());

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey;
  if ($("pair").hidden || $("large").open || typing || event.repeat) return;
  if (event.key in KEYS) {
    const question = unanswered();
    if (question !== undefined) vote(question, KEYS[event.key]);
  } else if (event.key === "Backspace") {
    back();
  } else if (event.key !== "Enter" || event.target.matches("button")) {
    return;
  } else {
    on();
  }
  event.preventDefault();
});

const judge = new URLSearchParams(location.search).get("judge");
if (judge) begin(judge);
else show("start");
