// A back-end: takes each line once, answers it by a command, reads the receipt of the command. Needs the RabbitMQ Java client.
//
// usage: AMQP_URL=amqp://guest:guest@localhost java -cp 'amqp-client.jar:slf4j-api.jar' BackEnd.java

import com.rabbitmq.client.*;
import java.nio.charset.StandardCharsets;
import java.util.*;
import java.util.concurrent.*;
import java.util.regex.*;

public class BackEnd {
    static final String LINES = setting("FROM_DEVICE", "from_device"), RECEIPTS = setting("RECEIPTS", "backend.receipts");
    static final int MAX_BACKOFF_MS = 30_000, PREFETCH = 100, MAX_SEEN = 10_000, CONFIRM_TIMEOUT_MS = 30_000;
    static final Pattern OUTCOME = Pattern.compile("\"outcome\":\"(\\w+)\"");

    /** The ids of the last lines. Store them together with the effect of the line when it must survive this process. */
    static final Set<String> seen = Collections.newSetFromMap(new LinkedHashMap<>() {
        protected boolean removeEldestEntry(Map.Entry<String, Boolean> eldest) {
            return size() > MAX_SEEN;
        }
    });
    static int attempt = 0;

    static String setting(String name, String otherwise) {
        return System.getenv().getOrDefault(name, otherwise);
    }

    static void takeLine(Channel channel, Delivery delivery) throws Exception {
        attempt = 0;
        AMQP.BasicProperties properties = delivery.getProperties();
        // <connection_id>:<from_device_seq>. The same line comes again when its acknowledgement was lost.
        String id = properties.getMessageId();
        String line = new String(delivery.getBody(), StandardCharsets.UTF_8);
        if (seen.add(id)) System.out.println("line " + id + " " + line);
        // The device's answer to a command. If it were answered, the two would talk without end.
        if (line.startsWith("done: ")) {
            channel.basicAck(delivery.getEnvelope().getDeliveryTag(), false);
            return;
        }
        AMQP.BasicProperties command = new AMQP.BasicProperties.Builder()
            .headers(Map.of("connection_id", properties.getHeaders().get("connection_id")))
            // The gateway writes a command with the same id once, however often it is published.
            .messageId("answer-" + id)
            .replyTo(RECEIPTS)
            .correlationId(id)
            .deliveryMode(2)
            .build();
        byte[] body = ("thank you for " + line).getBytes(StandardCharsets.UTF_8);
        // `replyTo` of the line is the queue of the worker with the connection. A command that is returned is
        // confirmed too: that worker has gone, and its connections too.
        channel.basicPublish("owsla.commands", properties.getReplyTo(), true, command, body);
        channel.waitForConfirmsOrDie(CONFIRM_TIMEOUT_MS);
        channel.basicAck(delivery.getEnvelope().getDeliveryTag(), false);
    }

    static void takeReceipt(Channel channel, Delivery delivery) throws Exception {
        Matcher outcome = OUTCOME.matcher(new String(delivery.getBody(), StandardCharsets.UTF_8));
        System.out.println("receipt " + delivery.getProperties().getCorrelationId() + " " + (outcome.find() ? outcome.group(1) : "?"));
        channel.basicAck(delivery.getEnvelope().getDeliveryTag(), false);
    }

    interface Taker {
        void take(Delivery delivery) throws Exception;
    }

    /** Returns when the connection ends. */
    static void consume(ConnectionFactory factory) throws Exception {
        // Deliveries are taken by this thread, because a callback must not wait for a confirm.
        BlockingQueue<Callable<Void>> deliveries = new LinkedBlockingQueue<>();
        try (Connection connection = factory.newConnection(); Channel channel = connection.createChannel()) {
            connection.addShutdownListener((cause) -> deliveries.add(() -> { throw cause; }));
            channel.confirmSelect();
            channel.basicQos(PREFETCH);
            channel.queueDeclare(RECEIPTS, true, false, false, null);
            subscribe(channel, RECEIPTS, deliveries, (delivery) -> takeReceipt(channel, delivery));
            subscribe(channel, LINES, deliveries, (delivery) -> takeLine(channel, delivery));
            System.out.println("consuming");
            while (true) deliveries.take().call();
        }
    }

    static void subscribe(Channel channel, String queue, Queue<Callable<Void>> deliveries, Taker taker) throws Exception {
        DeliverCallback deliver = (tag, delivery) -> deliveries.add(() -> {
            taker.take(delivery);
            return null;
        });
        channel.basicConsume(queue, false, deliver, (tag) -> deliveries.add(() -> {
            throw new IllegalStateException("the queue " + queue + " was deleted");
        }));
    }

    public static void main(String[] args) throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(System.getenv("AMQP_URL"));
        // Off, so that the program knows when a connection ends, and that its deliveries come again.
        factory.setAutomaticRecoveryEnabled(false);
        while (true) {
            try {
                consume(factory);
            } catch (Exception error) {
                System.out.println("broker lost: " + error);
            }
            // Full jitter: back-ends that lost the broker together do not return together.
            double bound = Math.min(MAX_BACKOFF_MS, Integer.parseInt(setting("BACKOFF_MS", "1000")) * Math.pow(2, attempt++));
            Thread.sleep((long) (Math.random() * bound));
        }
    }
}
