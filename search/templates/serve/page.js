const status = document.getElementById("status");
const results = document.getElementById("results");
const drop = document.getElementById("drop");
let kept = null; // share of a picture's shorter side that the model looks at
let queue = Promise.resolve();

function headers() {
  const token = sessionStorage.getItem("token");
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function ask(path, options = {}) {
  const response = await fetch(path, { ...options, headers: headers() });
  const content = await response.json().catch(() => ({}));
  if (response.status === 401) {
    const field = document.getElementById("token");
    if (field) field.focus();
    throw new Error("The token is missing or wrong: give it above, then try again.");
  }
  if (!response.ok) throw new Error(content.detail || `The server answers ${response.status}.`);
  return content;
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

function add(files) {
  for (const file of files) queue = queue.then(() => classify(file));
}

async function classify(file) {
  const name = file.name || "pasted picture";
  status.textContent = `Looking at ${name} …`;
  try {
    if (kept === null) kept = (await ask("classes")).kept;
    const form = new FormData();
    form.append("pictures", file, name);
    const content = await ask("predict?attribution=true", { method: "POST", body: form });
    const first = await show(name, file, content.predictions[0]);
    const unlike = content.predictions[0].unlike ? ", but unlike the training pictures" : "";
    status.textContent = `${name}: ${first.class}, ${percent(first.probability)}${unlike}`;
  } catch (error) {
    const reason = error instanceof TypeError ? "The server does not answer." : error.message;
    status.textContent = `${name}: ${reason}`;
  }
}

async function show(name, file, result) {
  const card = document.getElementById("result").content.cloneNode(true).firstElementChild;
  const first = result.classes[0];
  card.querySelector("h2").textContent = name;
  card.querySelector(".answer").textContent = first.class;
  for (const { class: label, probability } of result.classes) {
    const item = card.querySelector("ol").appendChild(document.createElement("li"));
    const line = item.appendChild(document.createElement("div"));
    line.className = "line";
    line.appendChild(document.createElement("span")).textContent = label;
    line.appendChild(document.createElement("span")).textContent = percent(probability);
    const bar = item.appendChild(document.createElement("div"));
    bar.className = "bar";
    bar.appendChild(document.createElement("div")).style.width = `${100 * probability}%`;
  }
  if (result.doubt !== null) tellDoubt(card.querySelector(".doubt"), result);
  await draw(card, name, file, result, first.class);
  results.prepend(card);
  return first;
}

// Of pictures like the training pictures, 95 of 100 do not exceed 1.
function tellDoubt(place, { doubt, unlike }) {
  place.classList.toggle("note", unlike);
  place.textContent = unlike
    ? `Not like the pictures that the model was trained on (doubt ${doubt.toFixed(2)}, above 1): do not rely on the answer.`
    : `Like the pictures that the model was trained on (doubt ${doubt.toFixed(2)}, at most 1).`;
}

// Draws the central square, which is all that the model sees, and over it where it sees the class.
async function draw(card, name, file, result, label) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    return; // a format that the browser cannot show
  }
  const side = Math.min(bitmap.width, bitmap.height) * kept;
  const size = Math.min(480, Math.max(160, Math.round(side)));
  const [picture, places] = card.querySelectorAll("canvas");
  for (const canvas of [picture, places]) canvas.width = canvas.height = size;
  const [left, top] = [(bitmap.width - side) / 2, (bitmap.height - side) / 2];
  picture.getContext("2d").drawImage(bitmap, left, top, side, side, 0, 0, size, size);
  picture.setAttribute("aria-label", `The middle of ${name}`);
  card.querySelector("figure").hidden = false;
  if (!result.attribution) return;
  drawPlaces(places, result.attribution);
  const toggle = card.querySelector(".toggle");
  const box = toggle.querySelector("input");
  const update = () => {
    places.hidden = !box.checked;
    const what = box.checked ? `; where the model sees ${label} is marked` : "";
    picture.setAttribute("aria-label", `The middle of ${name}${what}`);
  };
  box.addEventListener("change", update);
  toggle.hidden = false;
  update();
}

function drawPlaces(canvas, rows) {
  const small = document.createElement("canvas");
  small.width = rows[0].length;
  small.height = rows.length;
  const context = small.getContext("2d");
  const pixels = context.createImageData(small.width, small.height);
  rows.flat().forEach((value, i) => {
    pixels.data.set([255, Math.round(200 * (1 - value)), 0, Math.round(170 * value)], 4 * i);
  });
  context.putImageData(pixels, 0, 0);
  const large = canvas.getContext("2d");
  large.imageSmoothingQuality = "high";
  large.drawImage(small, 0, 0, canvas.width, canvas.height);
}

for (const id of ["files", "camera"]) {
  const input = document.getElementById(id);
  input.addEventListener("change", () => {
    add([...input.files]);
    input.value = "";
  });
}
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  add([...event.dataTransfer.files]);
});
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) event.preventDefault();
  add(files);
});
const form = document.getElementById("token-form");
if (form) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("token", document.getElementById("token").value);
    status.textContent = "The token is used from now on.";
  });
}
