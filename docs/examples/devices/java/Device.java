// A device: sends numbered lines, keeps each until it is acknowledged, answers commands. Needs no library.
//
// usage: GATEWAY=localhost:8443 CA_FILE=certs/ca.crt [HELLO_LINE="HELLO lock:17 …"] java Device.java

import java.io.*;
import java.net.InetSocketAddress;
import java.net.SocketTimeoutException;
import java.nio.charset.StandardCharsets;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.*;
import javax.net.ssl.*;

public class Device {
    static final int MAX_BACKOFF_MS = 60_000, TIMEOUT_MS = 30_000, MAX_KEPT = 100;
    static final int INTERVAL_MS = setting("INTERVAL_MS", 1_000), SIGN_OF_LIFE_MS = setting("SIGN_OF_LIFE_MS", 60_000);

    /** The lines that are not acknowledged, by their number on the current connection. */
    Map<Integer, String> kept = new LinkedHashMap<>();
    int number, readings, attempt;
    long nextReading, signOfLife;
    OutputStream output;

    static int setting(String name, int otherwise) {
        return Integer.parseInt(System.getenv().getOrDefault(name, "" + otherwise));
    }

    static long now() {
        return System.nanoTime() / 1_000_000;
    }

    void send(String line) throws IOException {
        output.write((line + "\n").getBytes(StandardCharsets.UTF_8));
        signOfLife = now() + SIGN_OF_LIFE_MS;
    }

    void sendKept(String line) throws IOException {
        kept.put(number++, line);
        send(line);
    }

    /** Returns the wait of the goodbye line; -1 when the connection ends without one. */
    long serve(SSLSocket tls) throws IOException {
        output = tls.getOutputStream();
        InputStream input = tls.getInputStream();
        // The gateway numbers the lines of each connection from 0, without the HELLO line and empty lines.
        List<String> again = new ArrayList<>(kept.values());
        kept.clear();
        for (number = 0; number < again.size(); number++) kept.put(number, again.get(number));
        send(System.getenv().getOrDefault("HELLO_LINE", ""));
        for (String line : again) send(line);
        ByteArrayOutputStream received = new ByteArrayOutputStream();
        while (true) {
            if (now() >= nextReading) {
                nextReading = now() + INTERVAL_MS;
                // While too many lines are not acknowledged, readings are skipped.
                if (kept.size() < MAX_KEPT) sendKept("reading " + readings++);
            }
            if (now() >= signOfLife) send("");
            tls.setSoTimeout((int) Math.max(1, Math.min(nextReading, signOfLife) - now()));
            int next;
            try {
                next = input.read();
            } catch (SocketTimeoutException nothing) {
                continue;
            }
            if (next == -1) return -1;
            if (next != '\n') {
                received.write(next);
                continue;
            }
            String line = received.toString(StandardCharsets.UTF_8);
            received.reset();
            attempt = 0;
            if (line.startsWith("ACK ")) {
                kept.remove(Integer.parseInt(line.substring(4)));
            } else if (line.startsWith("BYE ")) {
                System.out.println("goodbye " + line.substring(4));
                return Long.parseLong(line.substring(line.lastIndexOf(' ') + 1));
            } else {
                System.out.println("command " + line);
                sendKept("done: " + line);
            }
        }
    }

    static SSLSocketFactory trusting(String caFile) throws Exception {
        KeyStore authorities = KeyStore.getInstance(KeyStore.getDefaultType());
        authorities.load(null);
        try (InputStream pem = new FileInputStream(caFile)) {
            authorities.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(pem));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(authorities);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, trust.getTrustManagers(), null);
        return context.getSocketFactory();
    }

    public static void main(String[] args) throws Exception {
        String[] gateway = System.getenv("GATEWAY").split(":");
        SSLSocketFactory sockets = trusting(System.getenv("CA_FILE"));
        Device device = new Device();
        device.nextReading = now();
        while (true) {
            long waitMs = -1;
            try (SSLSocket tls = (SSLSocket) sockets.createSocket()) {
                SSLParameters parameters = tls.getSSLParameters();
                // Otherwise only the CA is verified, and not the name of the gateway.
                parameters.setEndpointIdentificationAlgorithm("HTTPS");
                tls.setSSLParameters(parameters);
                tls.setSoTimeout(TIMEOUT_MS);
                tls.connect(new InetSocketAddress(gateway[0], Integer.parseInt(gateway[1])), TIMEOUT_MS);
                tls.startHandshake();
                System.out.println("connected");
                waitMs = device.serve(tls);
            } catch (IOException error) {
                System.out.println("disconnected: " + error.getMessage());
            }
            if (waitMs < 0) {
                // Full jitter: devices that lost the gateway together do not return together.
                double bound = Math.min(MAX_BACKOFF_MS, setting("BACKOFF_MS", 1_000) * Math.pow(2, device.attempt++));
                waitMs = (long) (Math.random() * bound);
            }
            Thread.sleep(waitMs);
        }
    }
}
