/**
 * Constants of AMQP 0-9-1, with the types of table fields as RabbitMQ uses them ("AMQP 0-9-1
 * Errata" in its documentation). Pure.
 */

/** Types of frames. */
export const METHOD = 1
export const HEADER = 2
export const BODY = 3
/** The last byte of each frame. */
export const FRAME_END = 0xce
/** Bytes of a frame before its payload: type, channel and size. */
export const FRAME_HEAD = 7
/** Bytes of a frame besides its payload. */
export const FRAME_OVERHEAD = 8

/** Classes and methods, as the 32 bits at the beginning of a method frame's payload. */
export const BASIC = 60
export const CONNECTION_START = (10 << 16) | 10
export const BASIC_CANCEL = (BASIC << 16) | 30
export const BASIC_PUBLISH = (BASIC << 16) | 40
export const BASIC_RETURN = (BASIC << 16) | 50
export const BASIC_DELIVER = (BASIC << 16) | 60
export const BASIC_ACK = (BASIC << 16) | 80
export const BASIC_NACK = (BASIC << 16) | 120

/** The bits of a message's properties, in the order in which the properties follow each other. */
export const CONTENT_TYPE = 0x8000
export const CONTENT_ENCODING = 0x4000
export const HEADERS = 0x2000
export const DELIVERY_MODE = 0x1000
export const PRIORITY = 0x0800
export const CORRELATION_ID = 0x0400
export const REPLY_TO = 0x0200
export const EXPIRATION = 0x0100
export const MESSAGE_ID = 0x0080
export const TIMESTAMP = 0x0040
export const TYPE = 0x0020
export const USER_ID = 0x0010
export const APP_ID = 0x0008
export const CLUSTER_ID = 0x0004

/** Types of the values in tables. */
export const ARRAY = 0x41 // A
export const BYTES = 0x78 // x
export const BOOLEAN = 0x74 // t
export const DECIMAL = 0x44 // D
export const FLOAT_32 = 0x66 // f
export const FLOAT_64 = 0x64 // d
export const INT_8 = 0x62 // b
export const INT_16 = 0x73 // s
export const INT_32 = 0x49 // I
export const INT_64 = 0x6c // l
export const STRING = 0x53 // S
export const TABLE = 0x46 // F
export const TIME = 0x54 // T
export const UINT_8 = 0x42 // B
export const UINT_16 = 0x75 // u
export const UINT_32 = 0x69 // i
/** RabbitMQ passes it on and never makes one. */
export const UINT_64 = 0x4c // L
export const VOID = 0x56 // V
