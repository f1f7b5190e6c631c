"use strict";
(() => {
  // Milliseconds: between two requests, while nobody looks, until a request is given up.
  const POLL = 500, POLL_HIDDEN = 5000, PATIENCE = 3000;
  // Milliseconds that the charts show, at most and at least, and of which a percentile is.
  const SHOWN = 300000, SHOWN_MIN = 30000, WINDOW = 10000;
  const EVENTS_MAX = 100;
  const MARKS = { ready: "●", booting: "◔", draining: "▽", drained: "▼", hung: "✖", aborting: "✖", killed: "✖" };
  // What an operator or a setting has asked for.
  const PLANNED = ["requested", "scaled_down", "recycled", "reload"];

  const byId = (id) => document.getElementById(id);
  const pools = new Map();
  const said = new Set();
  let master = null, answeredAt = Date.now(), failure = null, timer = null;
  let events = [], cursor = null;

  // Shows what a terminal or a browser would obey as an escape.
  const clean = (value) => String(value).replace(
    /[\u0000-\u001f\u007f-\u009f\u061c\u2028-\u202e\u2066-\u2069\ufeff]/g,
    (character) => "\\u" + character.charCodeAt(0).toString(16).padStart(4, "0"));

  const node = (tag, name, ...children) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    made.append(...children);
    return made;
  };
  const setText = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
  };
  const setClass = (element, name) => {
    if (element.className !== name) element.className = name;
  };

  // Makes the children of an element those of a list, and keeps the elements that stay.
  const reconcile = (parent, items, keyOf, create, update) => {
    const old = new Map(Array.from(parent.children, (child) => [child.dataset.key, child]));
    const wanted = new Set(items.map((item) => String(keyOf(item))));
    for (const [key, child] of old) if (!wanted.has(key)) child.remove();
    let place = parent.firstElementChild;
    for (const item of items) {
      const key = String(keyOf(item));
      let child = old.get(key);
      if (!child) {
        child = create(item);
        child.dataset.key = key;
      }
      update(child, item);
      if (child === place) place = place.nextElementSibling;
      else parent.insertBefore(child, place);
    }
  };

  // Made once: a thousand tiles need thousands of numbers in each turn.
  const FORMATS = [0, 1].map((digits) => new Intl.NumberFormat("en", { maximumFractionDigits: digits }));
  const number = (value) => FORMATS[value < 10 ? 1 : 0].format(value);
  const duration = (ms) => {
    if (ms < 1) return `${Math.round(ms * 1000)} µs`;
    if (ms < 1000) return `${Math.round(ms)} ms`;
    if (ms < 60000) return `${ms < 10000 ? (ms / 1000).toFixed(1) : Math.floor(ms / 1000)} s`;
    const seconds = Math.floor(ms / 1000), minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60);
    if (hours >= 24) return `${Math.floor(hours / 24)} d ${hours % 24} h`;
    return hours ? `${hours} h ${minutes % 60} min` : `${minutes} min ${seconds % 60} s`;
  };
  const bytes = (value) => {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    for (; value >= 1024 && unit < 4; unit += 1) value /= 1024;
    return `${number(value)} ${units[unit]}`;
  };
  const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");
  const isKnown = (value) => value !== null && value !== undefined;

  const announce = (key, text) => {
    if (said.has(key)) return;
    if (said.size > 1000) said.clear();
    said.add(key);
    const log = byId("announcements");
    log.append(node("p", "", text));
    while (log.children.length > 5) log.firstElementChild.remove();
  };

  // What a worker is at.
  const oldestUnit = (worker) => worker.in_flight.reduce(
    (oldest, unit) => (!oldest || unit.age_ms > oldest.age_ms ? unit : oldest), null);
  const workOf = (worker) => {
    const unit = oldestUnit(worker);
    if (!unit) return "idle";
    const more = worker.in_flight.length - 1;
    return `${clean(unit.label) || "a unit of work"} for ${duration(unit.age_ms)}${more ? ` and ${more} more` : ""}`;
  };
  const isOverdue = (worker, pool) => {
    const unit = oldestUnit(worker);
    return worker.state === "ready" && pool.timeout_ms > 0 && unit !== null && unit.age_ms * 2 > pool.timeout_ms;
  };
  const exitText = (exit) => `worker ${exit.pid} exited ${duration(exit.age_ms)} ago after `
    + `${duration(exit.uptime_ms)}: ${clean(exit.reason)}, ${clean(exit.exit)}${exit.note ? `: ${clean(exit.note)}` : ""}`;

  const createTile = () => node("li", "tile",
    node("span", "", node("b"), " ", node("span", "state")), node("span"), node("span", "soft"), node("span", "soft"));
  const updateTile = (tile, slot, name, mark, state, lines) => {
    const [heading, ...rest] = tile.children;
    setClass(tile, `tile ${name}`);
    setText(heading.children[0], `Slot ${slot}`);
    setText(heading.children[1], `${mark} ${state}`);
    rest.forEach((element, index) => {
      setText(element, lines[index]);
      element.hidden = !lines[index];
    });
  };
  const workerTile = (tile, worker, pool, view) => {
    const overdue = isOverdue(worker, pool);
    const facts = [`PID ${worker.pid}`, `${number(worker.units)} units`, `up ${duration(worker.uptime_ms)}`];
    if (isKnown(worker.memory_bytes)) facts.push(bytes(worker.memory_bytes));
    if (isKnown(view.cpu.get(worker.pid))) facts.push(`CPU ${number(view.cpu.get(worker.pid))} %`);
    facts.push(isKnown(worker.heartbeat_age_ms) ? `heartbeat ${duration(worker.heartbeat_age_ms)} ago` : "heartbeat unknown");
    const exit = pool.last_exits.find((it) => it.slot === worker.slot && it.age_ms < 60000);
    updateTile(tile, worker.slot, overdue ? "overdue" : worker.state, overdue ? "◆" : MARKS[worker.state] || "?",
      overdue ? "ready, past half of its timeout" : worker.state,
      [workOf(worker), facts.join(" · "), exit ? `Before: ${exitText(exit)}.` : ""]);
  };
  const waitingTile = (tile, slot, pool) => {
    const exit = pool.last_exits.find((it) => it.slot === slot.slot);
    updateTile(tile, slot.slot, "waiting", "…", `waits ${duration(slot.restart_in_ms)} before its next worker`,
      ["", "", exit ? `Before: ${exitText(exit)}.` : ""]);
  };

  // The charts: points of { at, rate, p50, p99 }, the times in milliseconds.
  const createChart = () => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 300 60");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    return node("figure", "", node("figcaption"), svg);
  };
  const drawChart = (chart, points, lines, caption, now) => {
    const span = Math.max(SHOWN_MIN, points.length ? now - points[0].at : 0);
    const top = Math.max(...points.flatMap((point) => lines.map((line) => point[line] || 0)), 1e-9);
    reconcile(chart.lastElementChild, lines, (line) => line,
      () => document.createElementNS("http://www.w3.org/2000/svg", "path"),
      (path, line) => {
        let before = -Infinity, text = "";
        for (const point of points) {
          if (!isKnown(point[line])) continue;
          const x = 300 - (now - point.at) * 300 / span, y = 58 - point[line] * 56 / top;
          text += `${point.at - before > 4000 ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
          before = point.at;
        }
        path.setAttribute("class", line === "p99" ? "second" : "");
        path.setAttribute("d", text);
      });
    setText(chart.firstElementChild, caption(top, `last ${duration(Math.round(span / 1000) * 1000)}`));
  };
  // Returns the duration in milliseconds below which a share of the units between two counts stayed.
  const percentile = (before, after, share) => {
    const counts = new Map(before);
    // The last bucket has no bound.
    const added = after.map(([limit, count]) => [limit ?? 4e9, count - (counts.get(limit) || 0)]).filter(([, count]) => count > 0);
    let left = share * added.reduce((sum, [, count]) => sum + count, 0);
    for (const [limit, count] of added.sort((a, b) => a[0] - b[0])) {
      left -= count;
      if (left <= 0) return limit / 1000;
    }
    return null;
  };

  // Adds a point a second to the charts.
  const measure = (view, status, pool, now) => {
    const sample = { at: now, up: status.uptime_ms, units: pool.units_total, latency: pool.latency };
    sample.cpu = new Map(pool.workers.map((worker) => [worker.pid, worker.cpu_ms]));
    const last = view.samples[view.samples.length - 1];
    if (last && sample.up - last.up < 950) return;
    view.samples.push(sample);
    if (!last || sample.up <= last.up) {
      view.samples = [sample];
      return;
    }
    const passed = sample.up - last.up;
    const point = { at: now, rate: isKnown(sample.units) ? Math.max(0, sample.units - last.units) * 1000 / passed : null };
    while (sample.up - view.samples[0].up > WINDOW) view.samples.shift();
    if (Array.isArray(sample.latency) && Array.isArray(view.samples[0].latency)) {
      point.p50 = percentile(view.samples[0].latency, sample.latency, 0.5);
      point.p99 = percentile(view.samples[0].latency, sample.latency, 0.99);
    }
    for (const [pid, used] of sample.cpu) {
      const before = last.cpu.get(pid);
      if (isKnown(used) && isKnown(before)) view.cpu.set(pid, Math.max(0, used - before) * 100 / passed);
    }
    for (const pid of view.cpu.keys()) if (!sample.cpu.has(pid)) view.cpu.delete(pid);
    view.points.push(point);
  };

  const createPool = (pool) => {
    const id = `pool-${pools.size}`;
    const heading = node("h2");
    heading.id = id;
    const details = node("details", "", node("summary", "", "The workers as a table"), node("div", "wide"));
    const section = node("section", "", heading, node("p"), node("ul"), node("ul", "tiles"),
      node("div", "charts", createChart(), createChart()), details);
    section.setAttribute("aria-labelledby", id);
    pools.set(pool.name, { samples: [], points: [], cpu: new Map(), section, details });
    return section;
  };
  const COLUMNS = [
    ["Slot", 1, (it) => it.slot], ["PID", 1, (it) => it.pid], ["State", 0, (it) => it.state],
    ["Generation", 1, (it) => it.generation], ["Up", 1, (it) => duration(it.uptime_ms)],
    ["Units", 1, (it) => (isKnown(it.units) ? number(it.units) : "–")], ["Clients", 1, (it) => number(it.clients)],
    ["Heartbeat", 1, (it) => (isKnown(it.heartbeat_age_ms) ? `${duration(it.heartbeat_age_ms)} ago` : "unknown")],
    ["Memory", 1, (it) => (isKnown(it.memory_bytes) ? bytes(it.memory_bytes) : "unknown")],
    ["Works on", 0, workOf],
  ];
  const updateTable = (view, pool) => {
    if (!view.details.open) return;
    const wide = view.details.lastElementChild;
    if (!wide.firstElementChild) {
      wide.tabIndex = 0;
      wide.setAttribute("role", "region");
      wide.setAttribute("aria-label", `Table of pool ${clean(pool.name)}`);
      const row = node("tr");
      for (const [title, isNumber] of COLUMNS) {
        const cell = node("th", isNumber ? "number" : "", title);
        cell.scope = "col";
        row.append(cell);
      }
      wide.append(node("table", "", node("caption", "", `Workers of pool ${clean(pool.name)}`),
        node("thead", "", row), node("tbody")));
    }
    reconcile(wide.querySelector("tbody"), pool.workers, (worker) => worker.pid,
      () => node("tr", "", ...COLUMNS.map(([, isNumber]) => node("td", isNumber ? "number" : ""))),
      (row, worker) => {
        COLUMNS.forEach(([, , text], index) => setText(row.children[index], String(text(worker))));
        setClass(row.children[2], `state ${worker.state}`);
      });
  };
  const updatePool = (section, status, pool, now) => {
    const view = pools.get(pool.name);
    measure(view, status, pool, now);
    const [heading, summary, queues, tiles, charts] = section.children;
    setText(heading, `Pool ${clean(pool.name)}`);
    const phase = ["reloading", "suspended", "standby", "drain_mode", "stopping"].filter((it) => pool[it]);
    setText(summary, `${pool.ready} of ${pool.target} workers ready${phase.length ? `, ${phase.join(", ")}` : ""}. `
      + `Class ${clean(pool.class)}, app ${clean(pool.app)}. ${isKnown(pool.units_total)
        ? `${number(pool.units_total)} units of work done, ${pool.in_flight} in progress.` : "The program's units of work are not known."}`);
    reconcile(queues, pool.listeners, (it) => it.address, () => node("li"), (item, it) => setText(item,
      `${clean(it.address)}: queue length ${isKnown(it.queue_length) ? it.queue_length : "unknown"}.`));
    const shown = pool.workers.map((worker) => ({ key: `w${worker.pid}`, slot: worker.slot, worker }))
      .concat(pool.waiting_slots.map((slot) => ({ key: `s${slot.slot}`, slot: slot.slot, waiting: slot })))
      .sort((a, b) => a.slot - b.slot || a.worker.pid - b.worker.pid);
    reconcile(tiles, shown, (it) => it.key, createTile,
      (tile, it) => (it.worker ? workerTile(tile, it.worker, pool, view) : waitingTile(tile, it.waiting, pool)));
    updateTable(view, pool);
    view.points = view.points.filter((point) => now - point.at < SHOWN);
    const last = view.points[view.points.length - 1] || {};
    drawChart(charts.children[0], view.points, ["rate"], (top, span) => (isKnown(last.rate)
      ? `Units of work a second, ${span}: ${number(last.rate)} now, ${number(top < 1e-6 ? 0 : top)} at most.`
      : `Units of work a second: ${isKnown(pool.units_total) ? "measuring" : "not known"}.`), now);
    drawChart(charts.children[1], view.points, ["p50", "p99"], (top, span) => {
      if (!Array.isArray(pool.latency)) return "Duration of units: not known.";
      if (!isKnown(last.p50)) return "Duration of units: none was done in the last 10 s.";
      return `Duration of units, ${span}: half below ${duration(last.p50)} (solid), `
        + `99 % below ${duration(last.p99)} (dashed), ${duration(top)} at most.`;
    }, now);
    for (const worker of pool.workers) {
      if (["hung", "aborting", "killed"].includes(worker.state)) {
        announce(`state ${worker.pid}`, `Pool ${clean(pool.name)}, slot ${worker.slot}: worker ${worker.pid} is ${worker.state}.`);
      }
    }
    for (const exit of pool.last_exits) {
      if (exit.age_ms < 10000 && !PLANNED.includes(exit.reason)) {
        announce(`exit ${exit.pid}`, `Pool ${clean(pool.name)}, slot ${exit.slot}: ${exitText(exit)}.`);
      }
    }
  };

  const show = (status, now) => {
    if (master !== status.pid) {
      if (master !== null) announce(`master ${status.pid}`, `Another master answers: ${status.pid}.`);
      master = status.pid;
      for (const view of pools.values()) view.samples = [];
    }
    const title = `${clean(status.proc_name)}: ${status.phase}`;
    if (document.title !== title) document.title = title;
    setText(byId("title"), title);
    setText(byId("master"), `Master ${status.pid} with version ${clean(status.version)}, up ${duration(status.uptime_ms)}, `
      + `generation ${status.generation}${isKnown(status.peer_pid) ? `, beside master ${status.peer_pid}` : ""}.`);
    const unready = byId("unready");
    unready.hidden = status.ready;
    if (status.unready_reason) setText(unready, `Not ready: ${clean(status.unready_reason)}.`);
    else setText(unready, "Not ready.");
    byId("static").replaceChildren();
    reconcile(byId("pools"), status.pools, (pool) => pool.name, createPool,
      (section, pool) => updatePool(section, status, pool, now));
    for (const name of pools.keys()) if (!status.pools.some((pool) => pool.name === name)) pools.delete(name);
  };

  const showFailure = () => {
    const alarm = byId("alarm");
    if (!failure) {
      alarm.hidden = true;
      return;
    }
    const text = `${failure} since ${clock(answeredAt)} (${duration(Date.now() - answeredAt)}). What is below is of that time.`;
    setText(alarm, text);
    alarm.hidden = false;
    document.title = "master away";
    announce(`away ${answeredAt}`, `${failure} since ${clock(answeredAt)}.`);
  };

  // The records since the last answer, newest first.
  const parseEvents = (text) => text.split("\n\n").filter(Boolean).map((block) => {
    const fields = new Map(block.split("\n").map((line) => {
      const colon = line.indexOf(": ");
      return [line.slice(0, colon), line.slice(colon + 2)];
    }));
    return { id: Number(fields.get("id")), kind: fields.get("event"), data: JSON.parse(fields.get("data")) };
  }).reverse();
  const SHOWN_APART = ["seq", "time", "level", "message"];
  const createEvent = ({ kind, data }) => {
    if (kind === "gap") {
      return node("li", "soft", data.reason === "other_master"
        ? "Another master. Records of the former one may be missing here." : "Records are missing here.");
    }
    const time = node("time", "soft", clock(Date.parse(data.time)));
    time.dateTime = data.time;
    const item = node("li", "", time, " ");
    if (data.level !== "INFO") item.append(node("span", `level ${clean(data.level)}`, clean(data.level)), " ");
    const fields = Object.entries(data).filter(([key]) => !SHOWN_APART.includes(key));
    item.append(node("b", "", clean(data.message)), " ",
      node("span", "soft", fields.map(([key, value]) => clean(`${key}=${value}`)).join(" ")));
    return item;
  };
  const showEvents = async (last) => {
    if (!isKnown(last) || last === cursor) return;
    const path = cursor === null ? `last=${EVENTS_MAX}` : `after=${cursor}`;
    const added = parseEvents(await ask(`v1/events?follow=0&${path}`, "text"));
    if (!added.length) return;
    cursor = added[0].id;
    events = added.concat(events).slice(0, EVENTS_MAX);
    const section = byId("events");
    section.hidden = false;
    reconcile(section.lastElementChild, events, (event) => `${event.kind}${event.id}`, createEvent, () => {});
  };

  class Unanswered extends Error {}
  const ask = async (path, kind) => {
    const options = { cache: "no-store", credentials: "omit", redirect: "error", signal: AbortSignal.timeout(PATIENCE) };
    let answer = null, body = null;
    try {
      answer = await fetch(path, options);
      body = await answer[kind]();
    } catch (error) {
      if (!answer || answer.ok) throw new Unanswered("The master does not answer");
    }
    if (!answer.ok) throw new Unanswered(`The master answers ${answer.status}`);
    return body;
  };
  const poll = async () => {
    timer = null;
    const before = failure;
    try {
      const status = await ask("v1/status", "json");
      answeredAt = Date.now();
      failure = null;
      if (before) announce(`back ${answeredAt}`, `The master answers again: ${status.pid}.`);
      show(status, answeredAt);
      await showEvents(status.last_event);
    } catch (error) {
      failure = error instanceof Unanswered ? error.message : `The page does not understand the master: ${clean(error)};`;
    }
    showFailure();
    timer = setTimeout(poll, document.hidden ? POLL_HIDDEN : POLL);
  };
  document.addEventListener("visibilitychange", () => {
    if (document.hidden || timer === null) return;
    clearTimeout(timer);
    poll();
  });
  poll();
})();
