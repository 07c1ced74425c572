const form = document.getElementById("form");
const field = document.getElementById("sentence");
const problem = document.getElementById("problem");
const models = document.querySelector(".models");
const places = [...document.querySelectorAll(".fills")];
let newest = 0;

function element(tag, name, text) {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  return made;
}

function showModel(place, sentence, answer, scale) {
  place.replaceChildren();
  if (answer.problem) return place.append(element("p", "muted", answer.problem));
  const filled = element("p", "filled", "");
  sentence.split("[MASK]").forEach((part, index) => {
    if (index) filled.append(element("mark", "", answer.masks[index - 1][0][0]));
    filled.append(part);
  });
  place.append(filled);
  for (const guesses of answer.masks) {
    const list = element("div", "guesses", "");
    for (const [word, share] of guesses) {
      const bar = element("div", "bar", "");
      bar.style.width = `${(100 * share) / scale}%`;
      list.append(element("span", "", word), bar, element("span", "share", `${(100 * share).toFixed(1)} %`));
    }
    place.append(list);
  }
}

async function fill() {
  const sentence = field.value.trim();
  const request = ++newest;
  models.classList.add("waiting");
  problem.hidden = true;
  try {
    const response = await fetch("/fill", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ sentence }),
    });
    const found = await response.json();
    if (request !== newest) return;
    if (found.problem) throw new Error(found.problem);
    const shares = found.models.flatMap((answer) => (answer.masks || []).flat().map(([, share]) => share));
    const scale = Math.max(...shares); // one for all models, so that their bars compare
    found.models.forEach((answer, index) => showModel(places[index], sentence, answer, scale));
  } catch (error) {
    if (request !== newest) return;
    const lost = error instanceof TypeError;
    problem.textContent = lost ? "The server does not answer; is cram demo still running?" : error.message;
    problem.hidden = false;
    places.forEach((place) => place.replaceChildren());
  }
  models.classList.remove("waiting");
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  fill();
});
field.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    fill();
  }
});
document.getElementById("mask").addEventListener("click", () => {
  field.setRangeText("[MASK]", field.selectionStart, field.selectionEnd, "end");
  field.focus();
});
document.querySelectorAll(".example-sentence").forEach((button) =>
  button.addEventListener("click", () => {
    field.value = button.textContent;
    fill();
  }),
);
fill();
