"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("figures");
  const themes = read("themes");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const precise = window.matchMedia("(pointer: fine)");

  // Figures name their colours; the reader's scheme says what they are.
  const painted = (value, theme) => {
    if (Array.isArray(value)) return value.map((item) => painted(item, theme));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, painted(item, theme)]));
    return typeof value === "string" && Object.hasOwn(theme, value) ? theme[value] : value;
  };

  const load = async () => {
    const packed = atob(document.getElementById("plotly").textContent.trim());
    const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  };

  const draw = async () => {
    const theme = themes[dark.matches ? "dark" : "light"];
    const drawn = Object.entries(figures).map(([slug, figure]) => {
      const { data, layout } = painted(figure, theme);
      // A finger that drags wants to scroll the page.
      layout.dragmode = precise.matches ? "zoom" : false;
      const config = { responsive: true, displaylogo: false, displayModeBar: false };
      return Plotly.react(document.getElementById(`plot-${slug}`), data, layout, config);
    });
    await Promise.all(drawn);
    document.documentElement.dataset.pictures = "drawn";
  };

  const start = async () => {
    if (typeof DecompressionStream === "undefined") {
      for (const slug of Object.keys(figures))
        document.getElementById(`plot-${slug}`).textContent =
          "This browser is too old to unpack the pictures: the PNG files beside this page show the same.";
      return;
    }
    await load();
    await draw();
    dark.addEventListener("change", draw);
  };
  start();
})();
