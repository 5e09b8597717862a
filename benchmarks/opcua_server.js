// A node-opcua server that offers load. One JSON argument: port, tags, period_ms, pki. Prints "READY". tags: ns=1;s=Tag00000.. that all
// change every period_ms; Doubles, or with types = 5 a fifth each of five types, in order.
const { OPCUAServer, Variant, DataType, StatusCodes, SecurityPolicy, MessageSecurityMode, OPCUACertificateManager } = require("node-opcua");
const set = Object.assign({ port: 0, tags: 1000, period_ms: 100, pki: "", types: 1 }, JSON.parse(process.argv[2]));

(async () => {
  const server = new OPCUAServer({
    port: set.port, hostname: "127.0.0.1", host: "127.0.0.1",
    securityPolicies: [SecurityPolicy.None], securityModes: [MessageSecurityMode.None], allowAnonymous: true,
    serverCertificateManager: new OPCUACertificateManager({ rootFolder: set.pki, automaticallyAcceptUnknownCertificate: true }),
    serverCapabilities: { maxSessions: 10, maxSubscriptions: 20, maxMonitoredItems: 100000, maxMonitoredItemsPerSubscription: 100000 },
  });
  await server.initialize();
  const own = server.engine.addressSpace.getOwnNamespace();
  const folder = own.addObject({ organizedBy: server.engine.addressSpace.rootFolder.objects, browseName: "Plant" });
  const tags = [], types = ["Double", "Float", "Int32", "UInt16", "Boolean"];
  for (let i = 0; i < set.tags; i++) {
    const dataType = types[Math.floor(i * set.types / set.tags)];
    const name = "Tag" + String(i).padStart(5, "0");
    tags.push(own.addVariable({ componentOf: folder, nodeId: "s=" + name, browseName: name, dataType, minimumSamplingInterval: 0,
      value: new Variant({ dataType: DataType[dataType], value: dataType === "Boolean" ? false : 0 }) }));
  }
  await server.start();
  console.log("READY");
  let tick = 0;
  setInterval(() => {
    tick += 1;
    const now = new Date();
    tags.forEach((tag, i) => {
      const type = types[Math.floor(i * set.types / set.tags)];
      const value = type === "Boolean" ? tick % 2 === 1 : type === "UInt16" ? tick % 65536 : tick;
      tag.setValueFromSource({ dataType: DataType[type], value }, StatusCodes.Good, now);
    });
  }, set.period_ms);
  process.on("SIGTERM", () => process.exit(0));
  setTimeout(() => process.exit(0), 480 * 1000);
})().catch((error) => { console.error(error); process.exit(1); });
