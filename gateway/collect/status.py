"""Status codes of OPC UA in words (OPC 10000-6, A.2): name, and for those a person can do something about, what. Pure."""

from __future__ import annotations

from typing import Final

_TRUST_US: Final = "Accept our certificate in the server's list of trusted clients: ebbgate trust SOURCE shows which, and where in the menus."
_CLOCK: Final = "Set the clocks of server and gateway; PLCs refuse certificates that begin in their future."

_KNOWN: Final[dict[int, tuple[str, str]]] = {
    0x8001_0000: ("BadUnexpectedError", "Look into the server's own log."),
    0x8002_0000: ("BadInternalError", "Look into the server's own log."),
    0x8003_0000: ("BadOutOfMemory", "The server has no memory left: fewer tags, larger publish."),
    0x8004_0000: ("BadResourceUnavailable", "The server has no resources left: other clients may hold them."),
    0x8005_0000: ("BadCommunicationError", "The server does not reach the device behind it."),
    0x8007_0000: ("BadDecodingError", ""),
    0x8008_0000: ("BadEncodingLimitsExceeded", "Lower load.items: the answer is too large for the server."),
    0x800A_0000: ("BadTimeout", "The server is overloaded, or does not reach the device behind it."),
    0x800B_0000: ("BadServiceUnsupported", "The server does not have this service."),
    0x800D_0000: ("BadServerNotConnected", ""),
    0x800E_0000: ("BadServerHalted", "Start the server or put the PLC in RUN."),
    0x8010_0000: ("BadTooManyOperations", "Lower load.items."),
    0x8011_0000: ("BadDataTypeIdUnknown", ""),
    0x8012_0000: ("BadCertificateInvalid", _TRUST_US),
    0x8013_0000: ("BadSecurityChecksFailed", _TRUST_US),
    0x8014_0000: ("BadCertificateTimeInvalid", _CLOCK),
    0x8015_0000: ("BadCertificateIssuerTimeInvalid", _CLOCK),
    0x8016_0000: ("BadCertificateHostNameInvalid", "Accept our certificate in the server, or switch its host name check off."),
    0x8017_0000: ("BadCertificateUriInvalid", "Set [gateway] application_uri to the URI in our certificate."),
    0x8018_0000: ("BadCertificateUseNotAllowed", _TRUST_US),
    0x801A_0000: ("BadCertificateUntrusted", _TRUST_US),
    0x801B_0000: ("BadCertificateRevocationUnknown", "Give the server the revocation list of our certificate's authority."),
    0x801D_0000: ("BadCertificateRevoked", "Have a new application certificate made."),
    0x801F_0000: ("BadUserAccessDenied", "Check user and password_file, and the rights of the account in the server."),
    0x8020_0000: ("BadIdentityTokenInvalid", "The server takes another kind of login: see what ebbgate trust SOURCE lists."),
    0x8021_0000: ("BadIdentityTokenRejected", "Check user and password_file; the account may be locked or expired."),
    0x8022_0000: ("BadSecureChannelIdInvalid", ""),
    0x8025_0000: ("BadSessionIdInvalid", ""),
    0x8026_0000: ("BadSessionClosed", ""),
    0x8027_0000: ("BadSessionNotActivated", ""),
    0x8028_0000: ("BadSubscriptionIdInvalid", ""),
    0x8031_0000: ("BadNoCommunication", "The server does not reach the device behind it."),
    0x8032_0000: ("BadWaitingForInitialData", "The server has not read it from its device yet."),
    0x8033_0000: ("BadNodeIdInvalid", "Copy the address from ebbgate browse."),
    0x8034_0000: ("BadNodeIdUnknown", "Compare the address with ebbgate browse."),
    0x8035_0000: ("BadAttributeIdInvalid", "It is no variable: name one below it, see ebbgate browse."),
    0x803A_0000: ("BadNotReadable", "Make it readable for our account in the server."),
    0x803C_0000: ("BadOutOfRange", ""),
    0x803D_0000: ("BadNotSupported", ""),
    0x803E_0000: ("BadNotFound", ""),
    0x8043_0000: ("BadMonitoredItemFilterInvalid", ""),
    0x8044_0000: ("BadMonitoredItemFilterUnsupported", ""),
    0x8053_0000: ("BadRequestTypeInvalid", ""),
    0x8054_0000: ("BadSecurityModeRejected", "Choose another mode: ebbgate trust SOURCE lists what the server offers."),
    0x8055_0000: ("BadSecurityPolicyRejected", "Choose another policy: ebbgate trust SOURCE lists what the server offers."),
    0x8056_0000: ("BadTooManySessions", "All sessions of this server are taken: end another client, or raise the limit in the server."),
    0x8057_0000: ("BadUserSignatureInvalid", "Check user_certificate and user_key."),
    0x8074_0000: ("BadTypeMismatch", ""),
    0x8077_0000: ("BadTooManySubscriptions", "End another client, or raise the limit in the server."),
    0x8078_0000: ("BadTooManyPublishRequests", ""),
    0x8079_0000: ("BadNoSubscription", ""),
    0x807B_0000: ("BadMessageNotAvailable", ""),
    0x807D_0000: ("BadTcpServerTooBusy", "Too many clients: try later, or end another."),
    0x807E_0000: ("BadTcpMessageTypeInvalid", "It may not be an OPC UA server: check address and port."),
    0x8081_0000: ("BadTcpNotEnoughResources", "Too many clients: try later, or end another."),
    0x8080_0000: ("BadTcpMessageTooLarge", "Lower load.items."),
    0x807F_0000: ("BadTcpSecureChannelUnknown", ""),
    0x8082_0000: ("BadTcpInternalError", ""),
    0x8083_0000: ("BadTcpEndpointUrlInvalid", "The server insists on another host name or path in the URL: write in `urls` the path it shows."),
    0x8089_0000: ("BadConfigurationError", "The address does not fit the device: compare it with ebbgate browse, or with the manual."),
    0x808A_0000: ("BadNotConnected", "The device behind the server is not connected."),
    0x808B_0000: ("BadDeviceFailure", "The device behind the server is faulty."),
    0x808C_0000: ("BadSensorFailure", "The sensor is faulty."),
    0x808D_0000: ("BadOutOfService", "It is switched off in the server."),
    0x809B_0000: ("BadNoData", ""),
    0x80DB_0000: ("BadTooManyMonitoredItems", "The server watches no more items: fewer tags, or end another client."),
}


def describe(code: int) -> str:
    """Return a code as a person reads it: "BadNodeIdUnknown (0x80340000)", or the number alone."""
    known = _KNOWN.get(code & 0xFFFF_0000)
    return f"{known[0]} (0x{code:08X})" if known else "Good" if code == 0 else f"0x{code:08X}"


def remedy(code: int) -> str:
    """Return what a person can do about it, "" where this table knows nothing."""
    return _KNOWN.get(code & 0xFFFF_0000, ("", ""))[1]
