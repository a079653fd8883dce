// A device for an ESP32 with Arduino's core 3. It was not compiled and not run by the tests of this project.
//
// It sends numbered lines, keeps each until it is acknowledged, and answers commands. A record of TLS has up to 16 KiB;
// TLS_MAX_RECORD_BYTES of the gateway lowers that for boards with less memory.
#include <NetworkClientSecure.h>
#include <WiFi.h>
#include <deque>

const char *HOST = "gateway.example", *HELLO_LINE = "HELLO lock:17 <proof>";
const uint16_t PORT = 8443;
const char *CA = "-----BEGIN CERTIFICATE-----\n…\n-----END CERTIFICATE-----\n";
const uint32_t INTERVAL_MS = 1000, SIGN_OF_LIFE_MS = 60000, BACKOFF_MS = 1000, MAX_BACKOFF_MS = 60000;
const size_t MAX_KEPT = 20;

struct KeptLine { uint32_t number; String line; };
// The lines that are not acknowledged, oldest first, with their numbers on the current connection.
std::deque<KeptLine> kept;
uint32_t number = 0, readings = 0, attempt = 0, lastReading = 0, lastSent = 0;
NetworkClientSecure tls;

void sendLine(const String &line) {
  tls.print(line + "\n");
  lastSent = millis();
}

void sendKept(const String &line) {
  kept.push_back({number++, line});
  sendLine(line);
}

// Returns the wait of the goodbye line, otherwise -1.
long take(const String &line) {
  attempt = 0;
  if (line.startsWith("ACK ")) {
    uint32_t acknowledged = line.substring(4).toInt();
    for (auto at = kept.begin(); at != kept.end(); ++at)
      if (at->number == acknowledged) { kept.erase(at); break; }
  } else if (line.startsWith("BYE ")) {
    return line.substring(line.lastIndexOf(' ') + 1).toInt();
  } else {
    sendKept("done: " + line);
  }
  return -1;
}

// Returns the wait of the goodbye line; -1 when the connection ends without one.
long serve() {
  sendLine(HELLO_LINE);
  // The gateway numbers the lines of each connection from 0, without the HELLO line and empty lines.
  number = 0;
  for (auto &unacknowledged : kept) {
    unacknowledged.number = number++;
    sendLine(unacknowledged.line);
  }
  while (tls.connected()) {
    if (millis() - lastReading >= INTERVAL_MS) {
      lastReading = millis();
      // While too many lines are not acknowledged, readings are skipped.
      if (kept.size() < MAX_KEPT) sendKept("reading " + String(readings++));
    }
    if (millis() - lastSent >= SIGN_OF_LIFE_MS) sendLine("");
    if (tls.available()) {
      long wait = take(tls.readStringUntil('\n'));
      if (wait >= 0) return wait;
    }
    delay(10);
  }
  return -1;
}

void setup() {
  WiFi.begin("network", "password");
  while (WiFi.status() != WL_CONNECTED) delay(100);
  // The certificate is checked against the clock.
  configTime(0, 0, "pool.ntp.org");
  while (time(nullptr) < 1700000000) delay(100);
  tls.setCACert(CA);
}

void loop() {
  long wait = tls.connect(HOST, PORT) ? serve() : -1;
  tls.stop();
  // Full jitter: devices that lost the gateway together do not return together.
  if (wait < 0) wait = random(min(MAX_BACKOFF_MS, BACKOFF_MS << min(attempt++, (uint32_t)16)));
  delay(wait);
}
