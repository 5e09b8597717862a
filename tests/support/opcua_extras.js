// What a tag table wants to know of variables, and what hostile or careless servers have. `extras` says which.
// context: units, ranges, enumerations, an array of four and one that varies; odd: names nobody should print; cycle: folders that hold each other; nodes: so many variables more;
// waves: ns=1;s=Wave, an array of four Doubles n, n + 0.25 .. with history, three while n % 10 is 9; commands: orders on stdin, one a line:
// namespace URI, started (another start time), semantics (the bit in Tag00000's status), add NAME, drop NAME, level NUMBER.
// namespaces: so many namespaces more; service_level: what the server says of itself; no_capabilities: ServerCapabilities deleted.
module.exports = (opcua, server, folder, extras) => {
  const { Variant, DataType, StatusCodes } = opcua;
  const space = server.engine.addressSpace, own = space.getOwnNamespace();
  const add = (name, dataType, value, more) => own.addVariable(Object.assign(
    { componentOf: folder, nodeId: "s=" + name, browseName: name, dataType, value: new Variant({ dataType: DataType[dataType] || DataType.Int32, value }) }, more || {}));
  if (extras.context) {
    own.addAnalogDataItem({
      componentOf: folder, nodeId: "s=Platen.Temp", browseName: "PlatenTemp", description: "Platen temperature", dataType: "Double",
      minimumSamplingInterval: 5000, engineeringUnitsRange: { low: 0, high: 250 }, engineeringUnits: opcua.standardUnits.degree_celsius,
      value: new Variant({ dataType: DataType.Double, value: 181.5 }) });
    own.addMultiStateDiscrete({ componentOf: folder, nodeId: "s=State", browseName: "State", enumStrings: ["stopped", "running", "a|b=c"], value: 1 });
    own.addTwoStateDiscrete({ componentOf: folder, nodeId: "s=Valve", browseName: "Valve", trueState: "open", falseState: "closed", value: true });
    const kind = own.addEnumerationType({ browseName: "PressMode", enumeration: [{ displayName: "manual", value: 3 }, { displayName: "auto", value: 7 }] });
    add("Mode", kind, 7);
    const zones = (size) => new Variant({ dataType: DataType.Float, arrayType: opcua.VariantArrayType.Array, value: new Float32Array(size) });
    add("Zones", "Float", [], { valueRank: 1, arrayDimensions: [4], value: zones(4) });
    add("Recipe", "Float", [], { valueRank: 1, arrayDimensions: [0], value: zones(3) });
    add("Slow", "Double", 1, { minimumSamplingInterval: 5000 });
    add("Hidden", "Float", 1, { accessLevel: "CurrentWrite", userAccessLevel: "CurrentWrite" });
  }
  if (extras.odd) {
    const names = ["<script>alert(1)</script>", "a\u0000b\u001b[31mred", "line\nbreak", "=cmd|' /C calc'!A0", "a/b/c", "Größe", "x".repeat(3000), "  ", "12-Jan", "\u202eevil", "con", "ns=2;s=trick", "i=85"];
    names.forEach((name, i) => add(name, "Double", i));
  }
  if (extras.cycle) {
    const a = own.addObject({ organizedBy: folder, browseName: "A" }), b = own.addObject({ organizedBy: a, browseName: "B" });
    b.addReference({ referenceType: "Organizes", nodeId: a });
    b.addReference({ referenceType: "Organizes", nodeId: folder });
    a.addReference({ referenceType: "Organizes", nodeId: a });
    own.addVariable({ componentOf: b, nodeId: "s=Deep", browseName: "Deep", dataType: "Double", value: new Variant({ dataType: DataType.Double, value: 1 }) });
  }
  for (let i = 0; i < (extras.namespaces || 0); i++) space.registerNamespace("urn:vendor:" + i);
  for (let i = 0; i < (extras.nodes || 0); i++) add("N" + i, "Double", i);
  if (extras.service_level !== undefined) space.findNode("i=2267").bindVariable(
    { get: () => new Variant({ dataType: DataType.Byte, value: extras.service_level }) }, true);
  if (extras.waves) {
    const wave = add("Wave", "Double", [0], { valueRank: 1, minimumSamplingInterval: 0, value: new Variant({ dataType: DataType.Double, arrayType: opcua.VariantArrayType.Array, value: [0, 0.25, 0.5, 0.75] }) });
    space.installHistoricalDataNode(wave, { maxOnlineValues: 10000 });
    let n = 0;
    setInterval(() => {
      n += 1;
      const value = [0, 0.25, 0.5, 0.75].map((part) => n + part).slice(0, n % 10 === 9 ? 3 : 4);
      wave.setValueFromSource({ dataType: DataType.Double, arrayType: opcua.VariantArrayType.Array, value });
    }, 100);
  }
  if (extras.commands) require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
    const [order, what] = line.split(" ");
    if (order === "namespace") space.registerNamespace(what);
    if (order === "started") server.engine._serverStatus.startTime = new Date();
    if (order === "semantics") space.findNode("ns=1;s=Tag00000").setValueFromSource(
      { dataType: DataType.Double, value: 0 }, opcua.StatusCode.makeStatusCode(StatusCodes.Good, "SemanticChanged"));
    if (order === "add") add(what, "Double", 1);
    if (order === "level") space.findNode("ns=1;s=Level").setValueFromSource({ dataType: DataType.Double, value: Number(what) });
    if (order === "drop") space.deleteNode(space.findNode("ns=1;s=" + what));
    console.log("DONE " + line);
  });
  if (extras.no_capabilities) space.deleteNode(space.findNode("i=2268"));
};
