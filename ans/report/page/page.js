"use strict";
// The gallery is complete without this script; it only orders and filters what is there.
const gallery = document.getElementById("gallery-cards");
if (gallery) {
  const sort = document.getElementById("sort");
  const filter = document.getElementById("filter");
  const told = document.getElementById("told");
  const cards = [...gallery.children];

  const arrange = () => {
    const [key, direction] = sort.value.split(" ");
    const sign = direction === "down" ? -1 : 1;
    const value = (card) => Number(card.dataset[key]);
    cards.sort((a, b) => sign * (value(a) - value(b)) || a.dataset.place - b.dataset.place);
    let shown = 0;
    for (const card of cards) {
      card.hidden = filter.value !== "" && card.dataset.reason !== filter.value && card.dataset.kind !== filter.value;
      shown += card.hidden ? 0 : 1;
      gallery.append(card);
    }
    told.textContent = `${shown} of ${cards.length} shown, ${sort.selectedOptions[0].text}`;
  };
  sort.addEventListener("change", arrange);
  filter.addEventListener("change", arrange);
  document.querySelector(".controls").hidden = false;
  arrange();

  for (const link of document.querySelectorAll("a[data-reason]")) {
    link.addEventListener("click", () => {
      filter.value = link.dataset.reason;
      arrange();
    });
  }
}
