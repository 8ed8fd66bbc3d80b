const status = document.getElementById("status");
const results = document.getElementById("results");
const drop = document.getElementById("drop");
let model = null; // what it looks at, as the server tells
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
  const name = file.name || "pasted image";
  status.textContent = `Looking at ${name} …`;
  try {
    model ??= await ask("classes");
    const form = new FormData();
    form.append("images", file, name);
    const content = await ask("predict?attribution=true", { method: "POST", body: form });
    const first = await show(name, file, content.predictions[0]);
    const unlike = content.predictions[0].unlike ? ", but unlike the training images" : "";
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

// Of images like the training images, 95 of 100 do not exceed 1.
function tellDoubt(place, { doubt, unlike }) {
  place.classList.toggle("note", unlike);
  place.textContent = unlike
    ? `Not like the images that the model was trained on (doubt ${doubt.toFixed(2)}, above 1): do not rely on the answer.`
    : `Like the images that the model was trained on (doubt ${doubt.toFixed(2)}, at most 1).`;
}

// Which part of an image the model sees, in its pixels, and how much of the model's square that fills.
function seen({ width, height }) {
  if (model.resize_mode === "crop") {
    const side = Math.min(width, height) * model.kept;
    return { width: side, height: side, across: 1, down: 1 };
  }
  const [across, down] = [width, height].map((side) =>
    Math.min(1, (model.squeezed * side) / Math.max(width, height)),
  );
  return { width, height, across, down };
}

// Draws what the model sees of an image, and over it where it sees the class.
async function draw(card, name, file, result, label) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    return; // a format that the browser cannot show
  }
  const part = seen(bitmap);
  const longer = Math.max(part.width, part.height);
  const scale = Math.min(480, Math.max(160, longer)) / longer;
  const [image, places] = card.querySelectorAll("canvas");
  for (const canvas of [image, places]) {
    canvas.width = Math.max(1, Math.round(part.width * scale));
    canvas.height = Math.max(1, Math.round(part.height * scale));
  }
  const [left, top] = [(bitmap.width - part.width) / 2, (bitmap.height - part.height) / 2];
  const to = [0, 0, image.width, image.height];
  image.getContext("2d").drawImage(bitmap, left, top, part.width, part.height, ...to);
  const shown = model.resize_mode === "crop" ? `The middle of ${name}` : name;
  image.setAttribute("aria-label", shown);
  card.querySelector("figure").hidden = false;
  if (!result.attribution) return;
  drawPlaces(places, result.attribution, part);
  const toggle = card.querySelector(".toggle");
  const box = toggle.querySelector("input");
  const update = () => {
    places.hidden = !box.checked;
    const what = box.checked ? `; where the model sees ${label} is marked` : "";
    image.setAttribute("aria-label", `${shown}${what}`);
  };
  box.addEventListener("change", update);
  toggle.hidden = false;
  update();
}

function drawPlaces(canvas, rows, { across, down }) {
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
  const [width, height] = [small.width * across, small.height * down];
  const [left, top] = [(small.width - width) / 2, (small.height - height) / 2];
  large.drawImage(small, left, top, width, height, 0, 0, canvas.width, canvas.height);
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
