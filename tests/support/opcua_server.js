// A node-opcua server for tests of the OPC UA source. One JSON argument; prints "READY", and "SERVICE <name>" for each kind of request seen.
// tags: Doubles ns=1;s=Tag00000.. that all count up by one every period_ms (value = tick); those from slow_from on only every fifth tick.
// Beside them one variable of every type, set once. log: a file that gets "<tick> <ms>" for every value the tags ever held, before they hold it.
const opcua = require("node-opcua");
const { OPCUAServer, Variant, DataType, StatusCodes, SecurityPolicy, MessageSecurityMode, OPCUACertificateManager, VariantArrayType } = opcua;
const set = Object.assign({ port: 0, tags: 10, period_ms: 100, max_items: 0, max_read: 0, history: false, secure: false, pki: "", user: "", password: "", start: 0,
  slow_from: 1e9, log: "", events_ms: 0, high: false,
  policies: null, modes: null, accept: true, max_browse: 0, max_sessions: 4, hostname: "127.0.0.1", advertised: null, extras: {} }, JSON.parse(process.argv[2]));

(async () => {
  const options = {
    port: set.port, hostname: set.hostname, host: "127.0.0.1", advertisedEndpoints: set.advertised || undefined,
    securityPolicies: (set.policies || [set.secure ? "Basic256Sha256" : "None"]).map((name) => SecurityPolicy[name]),
    securityModes: (set.modes || [set.secure ? "SignAndEncrypt" : "None"]).map((name) => MessageSecurityMode[name]),
    allowAnonymous: !set.user,
    userManager: { isValidUser: (user, password) => user === set.user && password === set.password },
    serverCertificateManager: new OPCUACertificateManager({ rootFolder: set.pki, automaticallyAcceptUnknownCertificate: set.accept }),
    serverCapabilities: {
      maxSessions: set.max_sessions, maxSubscriptions: 20, maxMonitoredItems: 100000, maxMonitoredItemsPerSubscription: 100000,
      operationLimits: { maxMonitoredItemsPerCall: set.max_items || 10000, maxNodesPerRead: set.max_read || 10000, maxNodesPerHistoryReadData: 10, maxNodesPerBrowse: set.max_browse || 1000 },
    },
  };
  const server = new OPCUAServer(options);
  await server.initialize();
  const space = server.engine.addressSpace, own = space.getOwnNamespace();
  const folder = own.addObject({ organizedBy: space.rootFolder.objects, browseName: "Plant" });
  const add = (name, dataType, value, more) => own.addVariable(Object.assign(
    { componentOf: folder, nodeId: "s=" + name, browseName: name, dataType, minimumSamplingInterval: 0, value }, more || {}));
  let tick = set.start;
  const tags = [];
  for (let i = 0; i < set.tags; i++) tags.push(add("Tag" + String(i).padStart(5, "0"), "Double", new Variant({ dataType: DataType.Double, value: tick })));
  if (set.history) for (const tag of tags) space.installHistoricalDataNode(tag, { maxOnlineValues: 10000 });
  add("Text", "String", new Variant({ dataType: DataType.String, value: "Grüße" }));
  add("Flag", "Boolean", new Variant({ dataType: DataType.Boolean, value: true }));
  add("Big", "UInt64", new Variant({ dataType: DataType.UInt64, arrayType: VariantArrayType.Scalar, value: [0xffffffff, 0xfffffffe] }));
  add("Blob", "ByteString", new Variant({ dataType: DataType.ByteString, value: Buffer.from([0, 1, 255]) }));
  add("When", "DateTime", new Variant({ dataType: DataType.DateTime, value: new Date("2026-11-23T12:00:00.123Z") }));
  add("Row", "Int32", new Variant({ dataType: DataType.Int32, arrayType: VariantArrayType.Array, value: [1, 2, 3] }), { valueRank: 1 });
  add("Setpoint", "Float", new Variant({ dataType: DataType.Float, value: 1.5 }));
  add("ReadOnly", "Float", new Variant({ dataType: DataType.Float, value: 2.5 }), { accessLevel: "CurrentRead", userAccessLevel: "CurrentRead" });
  if (set.events_ms) {
    const eventType = own.addEventType({ browseName: "PressEventType", subtypeOf: "BaseEventType" });
    space.installAlarmsAndConditionsService();
    const machine = own.addObject({ organizedBy: space.rootFolder.objects, browseName: "Machine", eventSourceOf: space.rootFolder.objects.server, eventNotifier: 1 });
    const level = own.addVariable({ componentOf: machine, browseName: "Level", nodeId: "s=Level", dataType: "Double", value: new Variant({ dataType: DataType.Double, value: 0 }) });
    own.instantiateExclusiveLimitAlarm("ExclusiveLimitAlarmType", { browseName: "LevelHigh", conditionName: "LevelHigh", componentOf: machine, conditionSource: machine,
      inputNode: level, highHighLimit: 100, highLimit: 50, lowLimit: -50, lowLowLimit: -100, optionals: ["ConfirmedState", "Confirm"] });
    if (set.high) level.setValueFromSource({ dataType: DataType.Double, value: 75 });
    let high = set.high;
    setInterval(() => { high = !high; level.setValueFromSource({ dataType: DataType.Double, value: high ? 75 : 0 }); }, 5 * set.events_ms);
    let n = 0;
    setInterval(() => {
      n += 1;
      server.engine.addressSpace.rootFolder.objects.server.raiseEvent(eventType, {
        message: { dataType: DataType.LocalizedText, value: { text: "Störung " + n } }, severity: { dataType: DataType.UInt16, value: 500 + n % 500 },
        sourceName: { dataType: DataType.String, value: "Press7" },
      });
    }, set.events_ms);
  }
  require("./opcua_extras.js")(opcua, server, folder, set.extras);
  const seen = new Set();
  server.on("request", (request) => {
    const name = request.constructor.name;
    if (!seen.has(name)) { seen.add(name); console.log("SERVICE " + name); }
  });
  await server.start();
  console.log("READY");
  setInterval(() => {
    tick += 1;
    const now = new Date();
    if (set.log) require("fs").appendFileSync(set.log, tick + " " + now.getTime() + "\n");
    const most = tick % 5 ? Math.min(set.slow_from, tags.length) : tags.length;
    for (let i = 0; i < most; i++) tags[i].setValueFromSource({ dataType: DataType.Double, value: tick }, StatusCodes.Good, now);
  }, set.period_ms);
  process.on("SIGTERM", () => process.exit(0));
  setTimeout(() => process.exit(0), 600 * 1000);
})().catch((error) => { console.error(error); process.exit(1); });
