/* The data: script files that call nestcoder.receive, loaded when they are first needed. */
"use strict";

window.nestcoder = (() => {
  const KEPT_PACKS = 32;
  const waiting = new Map();
  const packs = new Map();

  async function unpack(text) {
    const letters = atob(text);
    const bytes = new Uint8Array(letters.length);
    for (let place = 0; place < letters.length; place++) bytes[place] = letters.charCodeAt(place);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  /* Resolves with what the file of this name gives to receive(). */
  function expect(name) {
    if (!waiting.has(name)) {
      const entry = {};
      entry.promise = new Promise((resolve, reject) => Object.assign(entry, { resolve, reject }));
      waiting.set(name, entry);
    }
    return waiting.get(name);
  }

  function receive(name, text) {
    const entry = expect(name);
    unpack(text).then(entry.resolve, entry.reject);
  }

  function load(name) {
    const script = document.createElement("script");
    script.src = `data/${name}.js`;
    script.onerror = () => expect(name).reject(new Error(`data/${name}.js is missing`));
    document.head.append(script);
    return expect(name).promise.finally(() => {
      script.remove();
      waiting.delete(name);
    });
  }

  /* The page of one feature, with the texts of its tokens; a few packs stay in memory, the latest used last. */
  async function page(feature) {
    const size = store.index.head.pack_features;
    const name = `pack-${String(Math.floor(feature / size)).padStart(5, "0")}`;
    const pack = packs.get(name) || load(name);
    packs.delete(name);
    packs.set(name, pack);
    if (packs.size > KEPT_PACKS) packs.delete(packs.keys().next().value);
    try {
      const { first, pages, vocabulary } = await pack;
      return { ...pages[feature - first], vocabulary };
    } catch (error) {
      packs.delete(name);
      throw error;
    }
  }

  const store = { receive, page, index: null, ready: expect("index").promise };
  store.ready.then((index) => { store.index = index; });

  /* What the index says of one feature. */
  store.entry = (feature) => {
    const { head, labels, firings, largest, lost } = store.index;
    const group = head.transcoder.prefixes.findIndex((end) => feature < end);
    return {
      feature,
      id: `${head.cache.layer}/${feature}`,
      label: labels[feature],
      firings: firings[feature],
      density: firings[feature] / head.tokens,
      largest: largest[feature],
      lost: lost[feature],
      cluster: store.index.cluster[feature],
      group,
      prefix: head.transcoder.prefixes[group],
    };
  };
  return store;
})();
