const status = document.getElementById("status");
const results = document.getElementById("results");
const drop = document.getElementById("drop");
let model = null; // what the server says of it
let queue = Promise.resolve();

function headers() {
  const token = sessionStorage.getItem("token");
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function request(path, options = {}) {
  const response = await fetch(path, { ...options, headers: headers() });
  const content = await response.json().catch(() => ({}));
  if (response.status === 401) {
    const field = document.getElementById("token");
    if (field) field.focus();
    throw new Error("The token is missing or wrong: enter it above, then try again.");
  }
  if (!response.ok) throw new Error(content.detail || `The server answered ${response.status}.`);
  return content;
}

function percent(fraction) {
  return `${(100 * fraction).toFixed(1)}%`;
}

function add(files) {
  for (const file of files) queue = queue.then(() => classify(file));
}

// Loads what the server says of its model, once; with a token not before that is there.
async function loadModel() {
  if (model) return;
  model = await request("classes");
  const { name, accuracy, accuracy_ci95: interval, n_test: nTest, classes, version } = model;
  const measured =
    accuracy === null
      ? ""
      : `: accuracy ${percent(accuracy)} on ${nTest} test images, 95% CI ${interval.map((bound) => (100 * bound).toFixed(1)).join("–")}%`;
  const about = document.getElementById("model");
  about.textContent = `Model ${name}${measured}.`;
  about.hidden = false;
  const list = document.getElementById("class-list");
  list.querySelector("summary").textContent = `${classes.length} classes`;
  for (const label of classes) {
    list.querySelector("ul").appendChild(document.createElement("li")).textContent = label;
  }
  list.hidden = false;
  document.getElementById("version").textContent = ` · ${version}`;
}

async function classify(file) {
  const name = file.name || "pasted image";
  status.textContent = `Predicting ${name} …`;
  try {
    await loadModel();
    const content = await send(file, name, "predict");
    const first = await show(name, file, content.predictions[0]);
    const note = content.predictions[0].is_ood ? ", but out of distribution" : "";
    status.textContent = `${name}: ${first.class}, ${percent(first.probability)}${note}`;
  } catch (error) {
    const what = reasonOf(error).replace(`no image can be read: ${name}: `, "This file ");
    showFailure(name, what);
    status.textContent = `${name}: ${what}`;
  }
}

function reasonOf(error) {
  return error instanceof TypeError ? "The server does not answer." : error.message;
}

function send(file, name, path) {
  const form = new FormData();
  form.append("images", file, name);
  return request(path, { method: "POST", body: form });
}

function showFailure(name, reason) {
  const card = document.getElementById("failure").content.cloneNode(true).firstElementChild;
  card.querySelector("h2").textContent = name;
  card.querySelector("p").textContent = reason;
  results.prepend(card);
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
  if (result.ood_score !== null) showOod(card.querySelector(".ood"), result);
  await draw(card, name, file, result, first.class);
  results.prepend(card);
  return first;
}

function showOod(element, { ood_score: score, is_ood: isOod }) {
  element.classList.toggle("note", isOod);
  element.textContent = isOod
    ? `Out of distribution: not like the training images (OOD score ${score.toFixed(2)}, above 1). Do not rely on the prediction.`
    : `Like the training images (OOD score ${score.toFixed(2)}, at most 1).`;
}

// The part of an image that the model sees, in pixels, and the fraction of the model's square that it fills.
function visiblePart({ width, height }) {
  if (model.resize_mode === "crop") {
    const side = Math.min(width, height) * model.crop_fraction;
    return { width: side, height: side, across: 1, down: 1 };
  }
  const [across, down] = [width, height].map((side) =>
    Math.min(1, (model.max_squeeze * side) / Math.max(width, height)),
  );
  return { width, height, across, down };
}

// Draws the part of an image that the model sees, and the heat map over it.
async function draw(card, name, file, result, label) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    return; // a format that the browser cannot show
  }
  const part = visiblePart(bitmap);
  const longer = Math.max(part.width, part.height);
  const scale = Math.min(480, Math.max(160, longer)) / longer;
  const [image, heatMap] = card.querySelectorAll("canvas");
  for (const canvas of [image, heatMap]) {
    canvas.width = Math.max(1, Math.round(part.width * scale));
    canvas.height = Math.max(1, Math.round(part.height * scale));
  }
  const [left, top] = [(bitmap.width - part.width) / 2, (bitmap.height - part.height) / 2];
  const to = [0, 0, image.width, image.height];
  image.getContext("2d").drawImage(bitmap, left, top, part.width, part.height, ...to);
  const shown = model.resize_mode === "crop" ? `The middle of ${name}` : name;
  image.setAttribute("aria-label", shown);
  card.querySelector("figure").hidden = false;
  const toggle = card.querySelector(".toggle");
  const box = toggle.querySelector("input");
  let rows = null; // asked for when it is first shown
  const update = async () => {
    if (box.checked && !rows) {
      try {
        const content = await send(file, name, "predict?top=1&grad_cam=true");
        rows = content.predictions[0].grad_cam;
      } catch (error) {
        box.checked = false; // it can be asked for again
        status.textContent = `${name}: ${reasonOf(error)}`;
        return;
      }
      if (!rows) {
        toggle.textContent = "There is no heat map of this model.";
        return;
      }
      drawHeatMap(heatMap, rows, part);
    }
    heatMap.hidden = !box.checked;
    image.classList.toggle("gray", box.checked); // as in the report
    const what = box.checked ? ` with the Grad-CAM heat map of ${label}` : "";
    image.setAttribute("aria-label", `${shown}${what}`);
  };
  box.addEventListener("change", update);
  toggle.hidden = false;
}

// matplotlib's "inferno" at nine levels, as in the report.
const INFERNO = [[0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164]];

function inferno(value) {
  const place = value * (INFERNO.length - 1);
  const below = Math.min(Math.floor(place), INFERNO.length - 2);
  return INFERNO[below].map((low, i) => Math.round(low + (place - below) * (INFERNO[below + 1][i] - low)));
}

function drawHeatMap(canvas, rows, { across, down }) {
  const small = document.createElement("canvas");
  small.width = rows[0].length;
  small.height = rows.length;
  const context = small.getContext("2d");
  const pixels = context.createImageData(small.width, small.height);
  rows.flat().forEach((value, i) => {
    pixels.data.set([...inferno(value), Math.round(255 * (0.2 + 0.5 * value))], 4 * i);
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
    loadModel().catch((error) => (status.textContent = error.message));
  });
}
if (!form || sessionStorage.getItem("token")) loadModel().catch(() => {});
