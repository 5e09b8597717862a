// What a tag table wants to know of variables, and what hostile or careless servers have. `extras` says which.
// context: units, ranges, enumerations; odd: names nobody should print; cycle: folders that hold each other; nodes: so many variables more;
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
  if (extras.no_capabilities) space.deleteNode(space.findNode("i=2268"));
};
