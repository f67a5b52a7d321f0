// Browsers start no Worker from file://, where the search of the site runs in one. There an iframe does its work.
"use strict";
window.IFrameWorker = class extends EventTarget {
  constructor(url) {
    super();
    const start = () => {
      self.postMessage = (data) => parent.postMessage(data, "*");
      self.importScripts = async (...places) => {
        for (const place of places)
          await new Promise((loaded, failed) => {
            const script = document.createElement("script");
            Object.assign(script, { src: place, onload: loaded, onerror: failed });
            document.body.append(script);
          });
      };
    };
    const script = `<script>(${start})()</` + `script><script src="${encodeURI(decodeURI(url))}"></` + "script>";
    this.frame = Object.assign(document.createElement("iframe"), { hidden: true, srcdoc: `<body>${script}` });
    this.ready = new Promise((loaded) => this.frame.addEventListener("load", loaded));
    this.listener = ({ source, data }) => {
      if (source !== this.frame.contentWindow) return;
      const event = new MessageEvent("message", { data });
      this.dispatchEvent(event);
      if (this.onmessage) this.onmessage(event);
    };
    addEventListener("message", this.listener);
    document.body.append(this.frame);
  }
  async postMessage(data) {
    await this.ready;
    this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) }));
  }
  terminate() {
    removeEventListener("message", this.listener);
    this.frame.remove();
  }
};
if (location.protocol === "file:") window.Worker = window.IFrameWorker;
